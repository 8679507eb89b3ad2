"""Settings of a run of four steps, with a checkpoint after the second."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def settings(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | {"n_layer": 1, "n_embd": 16, "block_size": 16, "steps": 4, "warmup_steps": 0, "eval_every": 2,
                   "eval_tokens": 64, "checkpoint_every": 2, "sample_every": 0, "learning_rate": 1e-2}  # fmt: skip
