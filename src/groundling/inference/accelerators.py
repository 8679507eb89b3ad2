"""Interfaces of what makes the engine faster. `acceleration/` implements them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from groundling.model.kv_cache import KVCache


class Decoder(Protocol):
    """Computes the model's forward pass for a few tokens."""

    most: int  # up to this many tokens at once it is faster than the model

    def read(
        self, tokens: Sequence[int], rows: Sequence[int], positions: Sequence[int], cache: KVCache
    ) -> npt.NDArray[np.float32]:
        """Read the tokens into the cache, those of a row in order. Returns logits (n, V). Does not change lengths."""


class Drafter(Protocol):
    """Guesses the next tokens."""

    def show(self, tokens: Sequence[int]) -> None:
        """Learn what follows what in `tokens`."""

    def add(self, tokens: Sequence[int]) -> None:
        """Learn only the newest of `tokens`."""

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `tokens`."""
