"""The keys and values of tokens already seen, so that generating a token costs one token's work."""

from __future__ import annotations

import math

import numpy as np
import torch

from groundling.config import ModelSettings


class KVCache:
    """Storage for a fixed number of rows and positions, allocated once; it knows how many each row has filled.

    Rows are independent of each other: each may be at a position of its own. `cache[a:b]` is a view of some rows:
    what is written through it, and its lengths, are the whole cache's.

    Shapes: B rows, nkv key and value heads, T time, hd head size.
    """

    def __init__(
        self,
        model: ModelSettings,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        capacity: int | None = None,
    ) -> None:
        """`capacity` is the number of positions in a row, the model's context if None."""
        self.capacity = model.block_size if capacity is None else capacity
        shape = (model.n_layer, batch_size, model.kv_heads, self.capacity, model.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (layer, B, nkv, T, hd)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = np.zeros(batch_size, dtype=np.int64)
        """Positions filled, by row. Lowered, it makes a row forget its newest ones."""

    def __getitem__(self, rows: slice) -> KVCache:
        view: KVCache = object.__new__(KVCache)
        view.capacity = self.capacity
        view.keys, view.values, view.lengths = self.keys[:, rows], self.values[:, rows], self.lengths[rows]
        return view

    def place(self, T: int) -> Place:
        """Where the next T tokens of each row go. Raises ValueError if they do not fit."""
        longest = int(self.lengths.max()) + T
        if longest > self.capacity:
            raise ValueError(f"{longest} tokens do not fit into this model's context of {self.capacity} (block_size).")
        return Place(self, T, longest)

    def advance(self, T: int) -> None:
        """Count T more positions as filled in each row: once a forward pass, after its last layer."""
        self.lengths += T

    def copy_row(self, row: int, source: KVCache, source_row: int) -> None:
        """Make `row` a copy of what `source_row` of `source` holds."""
        n = int(source.lengths[source_row])
        self.keys[:, row, :, :n] = source.keys[:, source_row, :, :n]
        self.values[:, row, :, :n] = source.values[:, source_row, :, :n]
        self.lengths[row] = n


class Place:
    """Where the newest T tokens of each row stand and what they see: made once a forward pass, used by every layer."""

    def __init__(self, cache: KVCache, T: int, longest: int) -> None:
        self._cache, self._longest = cache, longest
        device, past = cache.keys.device, longest - T
        self.positions: slice | torch.Tensor
        """Of the newest tokens: a slice of T where all rows are at the same place, else (B, T)."""
        self.visible: torch.Tensor | None = None
        """What is added to the scores, (B or 1, 1, T, longest): 0, or -inf where a key stands after the query. None
        where nothing is hidden, or nothing but the future of a row that begins."""
        level = int(cache.lengths.min()) == past
        positions = torch.from_numpy(cache.lengths[: 1 if level else None, None] + np.arange(T)).to(device)
        self.positions = slice(past, longest) if level else positions
        self._rows = torch.arange(len(cache.lengths), device=device)[:, None]
        if not level or (T > 1 and past > 0):
            hidden = torch.arange(longest, device=device) > positions[:, None, :, None]
            zero = torch.zeros((), device=device, dtype=cache.keys.dtype)
            self.visible = torch.where(hidden, -math.inf, zero)

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep k and v, (B, nkv, T, hd), and return all that is there, (B, nkv, longest, hd)."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if isinstance(self.positions, slice):
            keys[:, :, self.positions], values[:, :, self.positions] = k, v
        else:
            keys[self._rows, :, self.positions] = k.transpose(1, 2).to(keys.dtype)
            values[self._rows, :, self.positions] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, : self._longest], values[:, :, : self._longest]
