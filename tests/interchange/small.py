"""Helpers for the interchange tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groundling
from groundling.model.gpt import GPT
from groundling.model.weights_file import load_weights
from groundling.run.run import Run

QWEN3_PARTS: dict[str, Any] = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu"}
_SETTINGS: dict[str, Any] = {
    "preset": "nano", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 8, "steps": 8,
    "eval_every": 4, "eval_tokens": 512, "checkpoint_every": 4, "sample_every": 0, "learning_rate": 3e-3,
    "device": "cpu", "dtype": "float32",
}  # fmt: skip


def trained(folder: Path, text: str, **settings: Any) -> Run:
    """A run of eight steps on `text`, saved as text.txt."""
    (folder / "text.txt").write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        return groundling.train(
            folder / "text.txt", name="tiny", out=folder / "runs", on_event=lambda _: None, **_SETTINGS | settings
        )


def text_of(run: Run) -> Path:
    return run.folder.parents[1] / "text.txt"


def logits_of(run: Run, tokens: Any) -> torch.Tensor:
    """Logits of the run's best checkpoint, on the CPU."""
    model = GPT(run.config.model, run.tokenizer.vocab_size).eval()
    load_weights(run.checkpoint, model)
    with torch.inference_mode():
        return model(torch.as_tensor(np.asarray(tokens)))
