"""64-bit hashes of numbers and of windows of numbers, for shuffling, counting and lookup."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.unsignedinteger]

CACHED = 1 << 15  # values hashed at once: their 64-bit hashes fit in a core's own cache

_BASE = 0x9E3779B97F4A7C15  # of the polynomials; 5 modulo 8, so its powers take longest to repeat
_INVERSE = pow(_BASE, -1, 1 << 64)


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

    A polynomial modulo 2⁶⁴ of mixed values (Karp and Rabin, 1987): Σ value[k] · _BASE^(length - 1 - k). Each is the
    difference of two prefix sums of value[k] / _BASE^(k + 1), times a power. So long windows cost no more than short.
    """
    n = max(len(ids) - length + 1, 0)
    hashes = np.empty(n, dtype=np.uint64)
    most = min(n, CACHED) + length - 1
    powers, inverses = (np.full(most, base, dtype=np.uint64).cumprod() for base in (_BASE, _INVERSE))
    for start in range(0, n, CACHED):
        part = ids[start : min(start + CACHED, n) + length - 1]
        values = mix(part.astype(np.uint64) + np.uint64(1))
        sums = np.pad((values * inverses[: len(values)]).cumsum(), (1, 0))
        hashes[start : start + CACHED] = (sums[length:] - sums[:-length]) * powers[length - 1 : len(values)]
    return hashes
