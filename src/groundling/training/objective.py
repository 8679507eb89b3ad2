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


class Taught:
    """To predict the next token as `targets` have it, and as the teacher would: half of either.

    A text tells one token where several were possible, and read often it is learned by heart; what a model of the same
    kind has made of it holds them all, and is harder to overfit (Furlanello et al., "Born-Again Neural Networks",
    2018). docs/LOG.md has what it is worth.
    """

    _SHARE = 0.5  # the teacher's; 0.8 was no better

    def __init__(self, teacher: Callable[..., torch.Tensor]) -> None:
        self.teacher = teacher

    def __call__(self, forward: Callable[..., torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """As `next_token`, whose value it has, so that curves tell one thing; its gradient is the mixture's."""
        tokens, targets = batch
        with torch.no_grad():
            expected = self.teacher(tokens).float().flatten(0, 1).softmax(1)  # (B * T, V)
        logits = forward(tokens).float().flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten())
        mixture = torch.lerp(loss, F.cross_entropy(logits, expected), self._SHARE)
        return loss.detach() + (mixture - mixture.detach())
