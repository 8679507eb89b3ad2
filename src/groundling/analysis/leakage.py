"""Leakage: how much of the validation part is also in the training part, word for word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from groundling.analysis.ngrams import spread
from groundling.data.hashing import U64, window_hashes
from groundling.data.tokens import Tokens

WINDOW = 50  # characters
_VALIDATION_TOKENS, _TRAINING_TOKENS = 1_000_000, 8_000_000  # longer parts are sampled
_FILTER_BITS = 27


def shared(train: Tokens | Sequence[Tokens], validation: Tokens, window: int = WINDOW) -> float:
    """The share of the validation part's windows of `window` tokens that are also in the training part, or in one of
    several.

    Fast: it compares only hashes. Works for all kinds of tokens. Long parts are sampled: then it is a lower bound.
    """
    wanted = window_hashes(spread(validation, _VALIDATION_TOKENS), window)
    if not len(wanted):
        return 0.0
    table = filter_of(wanted)
    found = np.zeros(len(wanted), dtype=bool)
    for part in [train] if isinstance(train, Tokens) else train:
        hashes = window_hashes(spread(part, _TRAINING_TOKENS), window)
        found |= np.isin(wanted, hashes[table[slots(hashes, table)]])
    return float(found.mean())


def filter_of(hashes: U64) -> npt.NDArray[np.bool_]:
    """A table that rules out most hashes that are not among these: see `slots`."""
    table = np.zeros(1 << min(len(hashes).bit_length() + 4, _FILTER_BITS), dtype=bool)
    table[slots(hashes, table)] = True
    return table


def slots(hashes: U64, table: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The place of each hash in the table of `filter_of`."""
    return (hashes >> np.uint64(65 - len(table).bit_length())).astype(np.int64)
