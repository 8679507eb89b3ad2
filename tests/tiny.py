"""The settings of a model that trains 40 steps in about a second: for fixtures of every scope."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "preset": "nano", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 8, "steps": 40,
    "eval_every": 10, "eval_tokens": 1024, "checkpoint_every": 10, "sample_tokens": 12, "learning_rate": 3e-3,
    "warmup_steps": 5, "device": "cpu", "dtype": "float32",
}  # fmt: skip
