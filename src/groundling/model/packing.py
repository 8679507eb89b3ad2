"""Several documents in one row, none of which sees the others: less padding, and the same losses."""

from __future__ import annotations

import torch

from groundling.model.kv_cache import CachePosition, KVCache


class PackedRows:
    """Takes the place of a `KVCache` in `GPT.forward`: it keeps nothing, and says where each token is in its document.

    `documents`, (B, T), is the number of the document of each token; tokens of a document are next to each other.
    """

    def __init__(self, documents: torch.Tensor) -> None:
        T = documents.size(1)
        place = torch.arange(T, device=documents.device)
        starts = torch.ones_like(documents, dtype=torch.bool)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        self.positions = place - torch.where(starts, place, 0).cummax(1).values
        """Of each token in its document, (B, T)."""
        self.key_positions = self.positions
        self.attn_mask = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]
        """Whether a token, (B, 1, T, -), sees another, (-, T)."""

    def mask(self, window: int) -> torch.Tensor:
        """`attn_mask` for a layer in which a token sees no more than `window` tokens. 0: all."""
        if not window:
            return self.attn_mask
        distances = self.positions[:, :, None] - self.key_positions[:, None, :]
        return self.attn_mask & (distances < window)[:, None]

    def next_position(self, T: int) -> PackedRows:
        return self

    def advance(self, T: int) -> None:
        """Nothing is kept for a later pass."""

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return k, v


Cache = KVCache | PackedRows
Position = CachePosition | PackedRows
