"""Micro-batches of an optimizer step, and loss scaling for float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from groundling.data.batches import Batch
from groundling.evaluation.score import Interrupted
from groundling.parallel.mesh import Mesh

_STEPS_BEFORE_SCALING_UP = 1000


@dataclass
class LossScaler:
    """Loss scaling for float16, in which small gradients would become 0: the loss is scaled up before the backward
    pass, and gradients are scaled down after it (Micikevicius et al., "Mixed Precision Training", 2018)."""

    loss_scale: float = 2.0**16
    steps_in_range: int = 0  # since the scale changed

    def update(self, in_range: bool) -> None:
        """Halve the scale if gradients overflowed, and double it after many steps without an overflow."""
        self.steps_in_range = self.steps_in_range + 1 if in_range else 0
        if not in_range:
            self.loss_scale = max(self.loss_scale / 2, 1.0)
        elif self.steps_in_range % _STEPS_BEFORE_SCALING_UP == 0:
            self.loss_scale *= 2


def micro_batches(
    batch: Batch, n: int, weight: Callable[[Batch], float], seed: int, step: int, stopped: Callable[[], bool],
    mesh: Mesh | None = None,
) -> Iterator[tuple[Batch, float]]:  # fmt: skip
    """Split a batch into `n` micro-batches. Each comes with its `weight` divided by the mean weight, so that a token
    counts the same in all of them. There are none if all weights are 0, and fewer than `n` for a smaller batch.
    PyTorch's random numbers are seeded before each, for dropout.

    With a `mesh`, each micro-batch is divided further, and only what this rank learns comes. Raises Interrupted
    between two micro-batches once `stopped()`.
    """
    mesh = mesh or Mesh.single()
    parts = batch.split(n * mesh.data)
    weights = list(map(weight, parts))
    mean = sum(weights) / (n * mesh.data)
    mine = slice(mesh.data_rank, None, mesh.data)
    for i, (part, share) in enumerate(zip(parts[mine], weights[mine], strict=True) if mean else ()):
        if i and stopped():
            raise Interrupted
        if mesh.devices is not None and mesh.context > 1:
            from groundling.parallel.context import time_slice  # it takes a second to import

            part = time_slice(part, mesh.devices["context"])
            share = weight(part) * mesh.context
        torch.manual_seed(_dropout_seed(seed, step, i, mesh.dropout_rank))
        yield part, share / mean


def _dropout_seed(seed: int, step: int, micro_step: int, data_rank: int) -> int:
    rank = [data_rank] if data_rank else []
    words = np.random.SeedSequence([seed, step, micro_step, *rank]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
