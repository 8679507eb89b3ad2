"""ONNX exports, opened in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from small import logits_of

import groundling
from groundling.run.run import Run


def runtime(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def test_onnx_runtime_computes_the_same_for_any_batch_and_length(characters: Run, tmp_path: Path) -> None:
    made = groundling.export(characters, to="onnx", out=tmp_path / "export")
    assert made["proof"]["largest_difference"] < 1e-4
    session = runtime(tmp_path / "export")
    for shape in ((1, 1), (3, 7), (2, 32)):
        tokens = np.random.default_rng(0).integers(characters.tokenizer.vocab_size, size=shape)
        found = session.run(["logits"], {"tokens": tokens})[0]
        np.testing.assert_allclose(found, logits_of(characters, tokens).numpy(), atol=1e-4)


@pytest.mark.slow
def test_gpt2_too_and_in_8_bits(pieces: Run, tmp_path: Path) -> None:
    whole = groundling.export(pieces, to="onnx", out=tmp_path / "whole")
    small = groundling.export(pieces, to="onnx", quantize="int8", out=tmp_path / "small")
    assert small["files"]["model.onnx"] < 0.6 * whole["files"]["model.onnx"]
    assert abs(small["proof"]["engine_loss"] - whole["proof"]["engine_loss"]) < 0.02
