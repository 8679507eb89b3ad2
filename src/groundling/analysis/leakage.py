"""Leakage: how much of the validation part also occurs verbatim in the training part."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from groundling.analysis.ngrams import spread
from groundling.data.corpus import Tokens
from groundling.data.hashing import U64, window_hashes

WINDOW = 50
"""Characters of a window that is looked up."""
_ASKED, _SAMPLED = 1_000_000, 8_000_000  # tokens of the two parts
_FILTER_BITS = 27


def shared(train: Tokens, validation: Tokens, window: int = WINDOW) -> float:
    """The share of the validation part's windows, of so many tokens, that the training part has too; by hashes alone.

    It is quick, and works for tokens of any kind. Of long parts a sample is read: it is then a lower bound.
    """
    asked = window_hashes(spread(validation, _ASKED), window)
    if not len(asked):
        return 0.0
    seen = filter_of(asked)
    hashes = window_hashes(spread(train, _SAMPLED), window)
    return float(np.isin(asked, hashes[seen[slots(hashes, seen)]]).mean())


def filter_of(hashes: U64) -> npt.NDArray[np.bool_]:
    """A table that tells most of those hashes apart that are not among these."""
    seen = np.zeros(1 << min(len(hashes).bit_length() + 4, _FILTER_BITS), dtype=bool)
    seen[slots(hashes, seen)] = True
    return seen


def slots(hashes: U64, seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Where each hash has its mark."""
    return (hashes >> np.uint64(65 - len(seen).bit_length())).astype(np.int64)
