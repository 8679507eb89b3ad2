"""Forwards without a model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from groundling.model.compiled import Forward
from groundling.model.cross_entropy import cross_entropy


def saying(logits: torch.Tensor | Callable[[torch.Tensor], torch.Tensor]) -> Forward:
    """A forward with these logits, (B, T, V), or those that are a function of the tokens. With targets, their loss."""

    def forward(
        tokens: torch.Tensor, targets: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        found = logits if isinstance(logits, torch.Tensor) else logits(tokens)
        return found if targets is None else cross_entropy(found, targets, weights)

    return forward  # type: ignore[return-value]
