"""Micro-batches of an optimizer step, and float16's loss scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ConfigDict

from groundling.data.batches import Batch
from groundling.evaluation.score import Interrupted

_STEPS_BEFORE_SCALING_UP = 1000


@dataclass
class LossScaler:
    """For float16, where small gradients would vanish: the loss is scaled up before the backward pass, and gradients
    are scaled down after it (Micikevicius et al., "Mixed Precision Training", 2018)."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    loss_scale: float = 2.0**16
    steps_in_range: int = 0  # since the scale was changed

    def update(self, in_range: bool) -> None:
        """Halve the scale where gradients overflowed, and double it after many steps where they did not."""
        self.steps_in_range = self.steps_in_range + 1 if in_range else 0
        if not in_range:
            self.loss_scale = max(self.loss_scale / 2, 1.0)
        elif self.steps_in_range % _STEPS_BEFORE_SCALING_UP == 0:
            self.loss_scale *= 2


def micro_batches(
    batch: Batch, n: int, seed: int, step: int, stopped: Callable[[], bool]
) -> Iterator[tuple[Batch, float]]:
    """`n` micro-batches, each with its weight as a share of the mean weight, so that a token counts the same in a long
    and a short one. Before each, PyTorch's random numbers are seeded for its dropout.

    Raises Interrupted between two of them once `stopped()`.
    """
    parts = batch.split(n)
    weights = [part.weight for part in parts]
    mean = sum(weights) / n
    for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        if i and stopped():
            raise Interrupted
        torch.manual_seed(_dropout_seed(seed, step, i))
        yield part, weight / mean if mean else 0.0


def _dropout_seed(seed: int, step: int, micro_step: int) -> int:
    words = np.random.SeedSequence([seed, step, micro_step]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
