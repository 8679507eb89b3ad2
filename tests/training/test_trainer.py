"""The loop where a GPU would be ahead of Python: looked at late, and still the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import groundling
from groundling.config import CorpusSettings
from groundling.data.batches import WindowSampler
from groundling.data.corpus import prepare
from groundling.data.sources import find_source
from groundling.machine import Machine
from groundling.run.run import Run
from groundling.training.trainer import Trainer

TINY: dict[str, Any] = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 2, "steps": 20, "eval_every": 8,
    "checkpoint_every": 7, "log_every": 5, "keep_checkpoints": 0, "sample_tokens": 3, "warmup_steps": 2,
    "device": "cpu", "dtype": "float32", "compile": "off",
}  # fmt: skip


def quietly(event: object) -> None:
    pass


def weights(run: Run) -> dict[int, bytes]:
    checkpoints = run.checkpoints
    return {step: (checkpoints.path(step) / "model.safetensors").read_bytes() for step in checkpoints.steps()}


def test_results_seen_late_make_the_same_run(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = groundling.train(text_file, name="a", out=tmp_path, on_event=quietly, **TINY)
    looks: list[int] = []
    may_run_ahead = Trainer._may_run_ahead

    def watched(self: Trainer) -> bool:
        ahead = may_run_ahead(self)
        if not ahead:
            looks.append(self.state.step)
        return ahead

    monkeypatch.setattr(Machine, "runs_ahead", True)
    monkeypatch.setattr(Trainer, "_may_run_ahead", watched)
    late = groundling.train(text_file, name="b", out=tmp_path, on_event=quietly, **TINY)
    assert weights(late) == weights(at_once)
    assert looks == [5, 7, 8, 10, 14, 15, 16, 20]
    ends = [[line for line in run.metrics() if line["event"] == "evaluation"] for run in (at_once, late)]
    for one, other in zip(*ends, strict=True):
        assert one["validation_loss"] == other["validation_loss"]
        assert one["training_loss"] == pytest.approx(other["training_loss"])


def test_resident_batches_are_the_same(text_file: Path) -> None:
    text = prepare(find_source(text_file), CorpusSettings())
    batches = WindowSampler(text.train, 16, 6, seed=5)
    resident = batches.to(torch.device("cpu"))
    for step in (0, 1, 50):
        for one, other in zip(batches(step).split(2), resident(step).split(2), strict=True):
            assert one.tokens.dtype == other.tokens.dtype == one.targets.dtype == other.targets.dtype == torch.int64
            assert torch.equal(one.tokens, other.tokens)
            assert torch.equal(one.targets, other.targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gpu_learns_the_same_compiled_or_not(text_file: Path, tmp_path: Path, accumulate: int) -> None:
    losses = []
    for compile in ("off", "on"):
        settings = TINY | {"device": "cuda", "compile": compile, "accumulate": accumulate, "batch_size": 4}
        run = groundling.train(text_file, name=compile, out=tmp_path, on_event=quietly, **settings)
        losses.append([line["loss"] for line in run.metrics() if line["event"] == "step"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
