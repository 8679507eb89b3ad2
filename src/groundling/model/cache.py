"""The keys and values of tokens already seen, so that generating a token costs one token's work."""

from __future__ import annotations

import torch

from groundling.config import ModelSettings


class KVCache:
    """Storage for `block_size` positions, allocated once; it knows how many are filled.

    Shapes: B batch, nkv key and value heads, T time, hd head size.
    """

    def __init__(self, model: ModelSettings, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (model.n_layer, batch_size, model.kv_heads, model.block_size, model.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (layer, B, nkv, T, hd)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = model.block_size
        self.length = 0

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store k and v, (B, nkv, T, hd), after what is there; return all that is there, (B, nkv, length + T, hd)."""
        end = self.length + k.size(2)
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n: int) -> None:
        """Count n positions as filled: once a forward pass, after its last layer."""
        self.length += n

    def reset(self) -> None:
        self.length = 0
