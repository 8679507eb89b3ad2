"""KV cache: the keys and values of earlier tokens, so that they are computed only once."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch

from groundling.config import ModelSettings


class KVCache:
    """Keys and values for a fixed number of rows and positions, allocated once. It tracks how full each row is.

    Each row may be at a different position. `cache[a:b]` is a view of some rows: a write to it, or to its
    lengths, changes the cache.

    Shapes: B rows, nkv key and value heads, T time, hd head size.
    """

    def __init__(
        self, model: ModelSettings, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (model.n_layer, batch_size, model.kv_heads, capacity, model.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (layer, B, nkv, T, hd)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.windows = set(model.windows)
        self.lengths = np.zeros(batch_size, dtype=np.int64)
        """Positions filled, by row. Lower it to drop a row's newest ones."""

    def __getitem__(self, rows: slice) -> KVCache:
        view = copy.copy(self)
        view.keys, view.values, view.lengths = self.keys[:, rows], self.values[:, rows], self.lengths[rows]
        return view

    def next_position(self, T: int) -> CachePosition:
        """Where the next T tokens of each row go. Raises ValueError if they do not fit."""
        length, capacity = int(self.lengths.max()) + T, self.keys.size(3)
        if length > capacity:
            raise ValueError(f"{length} tokens do not fit into this model's context of {capacity} (block_size).")
        return CachePosition(self, T, length)

    def advance(self, T: int) -> None:
        """Mark T more positions as filled in each row. Call it once a forward pass, after the last layer."""
        self.lengths += T

    def copy_row(self, row: int, source: KVCache, source_row: int) -> None:
        """Copy `source_row` of `source` into `row`."""
        n = int(source.lengths[source_row])
        self.keys[:, row, :, :n] = source.keys[:, source_row, :, :n]
        self.values[:, row, :, :n] = source.values[:, source_row, :, :n]
        self.lengths[row] = n


class CachePosition:
    """Where the newest T tokens of each row are, and what they may attend to. Made once a forward pass."""

    def __init__(self, cache: KVCache, T: int, max_length: int) -> None:
        self._cache, self._max_length = cache, max_length
        device, past = cache.keys.device, max_length - T
        self.positions: slice | torch.Tensor
        """Of the newest tokens: a slice of T where all rows are equally long, else (B, T)."""
        self._masks: dict[int, torch.Tensor] = {}
        level = int(cache.lengths.min()) == past
        positions = torch.from_numpy(cache.lengths[: 1 if level else None, None] + np.arange(T)).to(device)
        self.positions = slice(past, max_length) if level else positions
        self._rows = torch.arange(len(cache.lengths), device=device)[:, None]
        if not level or (T > 1 and past > 0):
            zero = torch.zeros((), device=device, dtype=cache.keys.dtype)
            distances = positions[:, None, :, None] - torch.arange(max_length, device=device)
            for window in cache.windows:
                hidden = (distances < 0) | (distances >= (window or max_length))
                self._masks[window] = torch.where(hidden, -math.inf, zero)

    def mask(self, window: int) -> torch.Tensor | None:
        """Added to the attention scores, (B or 1, 1, T, max_length): 0, or -inf where a key is after the query or
        outside of its window. None where plain causal attention is right."""
        return self._masks.get(window)

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store k and v, (B, nkv, T, hd), and return everything up to them, (B, nkv, max_length, hd)."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if isinstance(self.positions, slice):
            keys[:, :, self.positions], values[:, :, self.positions] = k, v
        else:
            keys[self._rows, :, self.positions] = k.transpose(1, 2).to(keys.dtype)
            values[self._rows, :, self.positions] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, : self._max_length], values[:, :, : self._max_length]
