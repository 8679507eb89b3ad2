"""64-bit hashes of numbers and of windows of numbers, for shuffling, counting and lookup."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.unsignedinteger]

CACHED = 1 << 15  # values hashed at once: their 64-bit hashes fit in a core's own cache

_BASE = 0x9E3779B97F4A7C15  # of the polynomials; 5 modulo 8, so its powers take longest to repeat


def mix(x: U64) -> U64:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014): each bit of x changes every bit of the result."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def window_hashes(ids: Ids, length: int) -> U64:
    """64-bit hashes of all windows of `length` values, shape (len(ids) - length + 1,). Equal windows have equal hashes.

    A polynomial modulo 2⁶⁴ of mixed values (Karp and Rabin, 1987). Windows of 1, 2, 4, ... are joined into larger
    ones, so a window of 50 costs seven multiplications.
    """
    n = max(len(ids) - length + 1, 0)
    hashes = np.empty(n, dtype=np.uint64)
    for start in range(0, n, CACHED):
        part = ids[start : min(start + CACHED, n) + length - 1]
        hashes[start : start + CACHED] = _window_hashes(mix(part.astype(np.uint64) + np.uint64(1)), length)
    return hashes


def _window_hashes(values: U64, length: int) -> U64:
    doubled, width, whole, covered = values, 1, None, 0
    while True:
        if length & width:
            whole = doubled if whole is None else _join(whole, doubled, covered, width)
            covered += width
        if covered == length:
            assert whole is not None
            return whole[: len(values) - length + 1]
        doubled, width = _join(doubled, doubled, width, width), 2 * width


def _join(left: U64, right: U64, offset: int, width: int) -> U64:
    """Hashes of joined windows: a left one, and a right one of `width` that starts `offset` later."""
    right = right[offset:]
    n = min(len(left), len(right))
    joined: U64 = left[:n] * np.uint64(pow(_BASE, width, 1 << 64))
    joined += right[:n]
    return joined
