"""Models for tests of what computes the same as they do."""

from __future__ import annotations

import torch

from groundling.config import ModelSettings
from groundling.model.gpt import GPT


def untrained(config: ModelSettings, vocab_size: int, spread: float) -> GPT:
    """One whose weights, norms and biases among them, are far enough apart to make a difference each."""
    torch.manual_seed(0)
    model = GPT(config, vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model
