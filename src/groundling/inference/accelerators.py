"""What can make the engine faster: see `acceleration/`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from groundling.model.kv_cache import KVCache


class Decoder(Protocol):
    """Reads few tokens in the model's place."""

    most: int
    """Tokens at once up to which it is faster than the model."""

    def read(
        self, tokens: Sequence[int], rows: Sequence[int], positions: Sequence[int], cache: KVCache
    ) -> npt.NDArray[np.float32]:
        """Read the tokens into the cache, those of a row in order. Returns logits (n, V). Lengths stay as they are."""


class Drafter(Protocol):
    """Guesses what comes next."""

    def show(self, tokens: Sequence[int]) -> None:
        """Learn what follows what in `tokens`."""

    def add(self, tokens: Sequence[int]) -> None:
        """Learn the newest of `tokens` alone."""

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `tokens`."""
