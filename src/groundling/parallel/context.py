"""Context parallelism: each rank has a slice of every row's tokens, and sees the keys and values of all.

Every layer gathers them (as in Llama Team, "The Llama 3 Herd of Models", 2024, section 3.3.2): they are small where
queries share them, any mask works, and their gradients go back to the ranks that they came from. (PyTorch's own
`context_parallel` passes them around in a ring, but has no kernels for CPUs and none for masks.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard

from groundling.data.batches import Batch
from groundling.model.packing import PackedRows


def time_slice(batch: Batch, mesh: DeviceMesh) -> Batch:
    """What this rank of the 1-D `mesh` learns of a batch. A batch that cannot be divided gets more tokens, of weight 0.
    `extras` stay whole, as `ContextForward` needs them."""
    ranks, T = mesh.size(), batch.tokens.size(1)
    missing = -T % ranks
    weights = batch.weights
    if missing and weights is None:
        weights = torch.ones_like(batch.tokens, dtype=torch.float32)

    def here(x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, missing)).chunk(ranks, dim=1)[mesh.get_local_rank()]

    extras = {name: F.pad(x, (0, missing), value=-1) for name, x in batch.extras.items()}
    return Batch(here(batch.tokens), here(batch.targets), None if weights is None else here(weights), extras)


class ContextForward:
    """`forward` of a GPT, for the tokens of a `time_slice`."""

    def __init__(self, forward: Any, mesh: DeviceMesh) -> None:
        self.forward, self.mesh = forward, mesh

    def __call__(self, tokens: torch.Tensor, packed: PackedRows | None = None, **options: Any) -> torch.Tensor:
        return self.forward(tokens, SlicedRows(self.mesh, tokens, packed), **options)


class SlicedRows(PackedRows):
    """Says where this rank's tokens are in their rows, and gathers the keys and values of all ranks.

    `tokens`, (B, T / ranks), are this rank's. `packed` is about all T tokens.
    """

    def __init__(self, mesh: DeviceMesh, tokens: torch.Tensor, packed: PackedRows | None) -> None:
        self.mesh, n = mesh, tokens.size(1)
        here = slice(mesh.get_local_rank() * n, (mesh.get_local_rank() + 1) * n)
        if packed is None:
            self.key_positions = torch.arange(n * mesh.size(), device=tokens.device)[None]
            self.positions = self.key_positions[:, here]
            self.attn_mask = (self.key_positions <= self.positions[0, :, None])[None, None]
        else:
            self.key_positions, self.positions = packed.positions, packed.positions[:, here]
            self.attn_mask = packed.attn_mask[:, :, here]

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._gathered(k), self._gathered(v)

    def _gathered(self, x: torch.Tensor) -> torch.Tensor:
        """(B, nkv, T / ranks, hd) -> (B, nkv, T, hd). The gradients of all ranks add up to that of the whole."""
        return DTensor.from_local(x, self.mesh, [Shard(2)], run_check=False).full_tensor(grad_placements=[Partial()])
