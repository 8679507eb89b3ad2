"""What is learned. An objective turns a model and a batch into a loss; `fit` does not care which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Objective = Callable[[Callable[..., torch.Tensor], Any], torch.Tensor]
"""(forward, batch) -> loss, a scalar in nats a token."""


def next_token(forward: Callable[..., torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of predicting `targets` from `tokens`, both (B, T); in nats."""
    tokens, targets = batch
    logits = forward(tokens)  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
