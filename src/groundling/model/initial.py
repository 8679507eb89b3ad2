"""The model before the first training step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from groundling.config import ModelSettings
from groundling.model.gpt import GPT
from groundling.model.weights_file import load_weights


@dataclass(frozen=True)
class InitialModel:
    """Initial weights: random ones from a seed, or those of a checkpoint folder."""

    config: ModelSettings
    vocab_size: int
    seed: int
    checkpoint: Path | None = None

    def build(self, stage: int = 1) -> GPT:
        """The model, built on the CPU, so that all devices start from the same weights. Each `stage` has its own random
        weights. PyTorch's global random state is not changed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + stage - 1)
            model = GPT(self.config, self.vocab_size)
        if self.checkpoint is not None:
            load_weights(self.checkpoint, model)
        return model
