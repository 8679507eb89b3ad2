"""NgramDrafter: guess the next tokens from what followed the same few tokens before.

The model reads a draft in one pass and keeps only what it would have generated itself, so drafts change the speed but
not the text (see engine.py). A draft costs one table look-up: Saxena, "Prompt lookup decoding", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_LENGTHS = (12, 8, 6, 5, 4, 3)  # tokens of context that must match; the longest match wins
_FACTOR = 0x9E3779B97F4A7C15  # odd, with well-mixed bits (Knuth's golden ratio)
_PLACES, _MARK = 20, 14  # bits of the hash: the place in a table, and the mark compared there
_TOKEN = 32 - _MARK  # bits of an entry that hold the token plus 1; the others hold the mark


class NgramDrafter:
    """Remembers what came last after each few tokens, in all texts it was shown.

    The tables have a fixed size, 25 MB in all. A hash of the tokens gives the place; newer entries replace older ones.
    """

    def __init__(self) -> None:
        self._tables = {n: np.zeros(1 << _PLACES, dtype=np.uint32) for n in _LENGTHS}

    def show(self, tokens: Sequence[int] | npt.NDArray[np.integer]) -> None:
        """Learn what follows what in `tokens`."""
        ids = np.asarray(tokens, dtype=np.uint64)
        for n, table in self._tables.items():
            if n < len(ids):
                hashed = np.zeros(len(ids) - n, dtype=np.uint64)
                for i in range(n):
                    hashed = (hashed + ids[i : len(ids) - n + i] + 1) * _FACTOR
                marks = (hashed >> 64 - _PLACES - _MARK) % (1 << _MARK)
                table[hashed >> 64 - _PLACES] = marks << _TOKEN | (ids[n:] + 1) % (1 << _TOKEN)

    def add(self, tokens: Sequence[int]) -> None:
        """Learn only the newest of `tokens`."""
        for n, table in self._tables.items():
            if n < len(tokens):
                place, mark = _place(tokens[-n - 1 : -1])
                table[place] = mark << _TOKEN | (tokens[-1] + 1) % (1 << _TOKEN)

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `tokens`."""
        context = list(tokens[-_LENGTHS[0] :])
        drafted = list[int]()
        while len(drafted) < most:
            entry = next(filter(None, (self._after(context[-n:]) for n in _LENGTHS if n <= len(context))), 0)
            if not entry:
                break
            drafted.append(entry - 1)
            context.append(entry - 1)
        return drafted

    def _after(self, context: Sequence[int]) -> int:
        """The token that followed `context`, plus 1. 0 if none is known."""
        place, mark = _place(context)
        entry = self._tables[len(context)].item(place)
        return entry % (1 << _TOKEN) if entry >> _TOKEN == mark else 0


def _place(tokens: Sequence[int]) -> tuple[int, int]:
    hashed = 0
    for token in tokens:
        hashed = (hashed + token + 1) * _FACTOR % (1 << 64)
    return hashed >> 64 - _PLACES, (hashed >> 64 - _PLACES - _MARK) % (1 << _MARK)
