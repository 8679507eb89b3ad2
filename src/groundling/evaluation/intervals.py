"""How sure a measured accuracy is: Wilson's interval, the difference of two accuracies, and pass@k."""

from __future__ import annotations

import math


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds the true share with 95 % confidence (for z = 1.96), by Wilson (1927).

    Unlike share ± z · standard error, it is right for small n and shares near 0 and 1. Without trials it is (0, 1).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be from 0 to n ({n}), not {successes}.")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, z * z
    centre = share + z2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + z2 / n) for sign in (-1, 1))
    return 0.0 if successes == 0 else low, 1.0 if successes == n else high


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k samples is right, if c of n were: unbiased, unlike 1 - (1 - c/n)^k.

    It is 1 - C(n - c, k) / C(n, k), by Chen et al. (2021, arXiv 2107.03374).
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 ≤ c ≤ n and 1 ≤ k ≤ n, not n = {n}, c = {c}, k = {k}.")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def paired_difference(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """The interval that holds with 95 % confidence how much larger the first share is than the second, both measured
    on the same items: counts of those that both, only the first, only the second, and neither got right.

    It is made of Wilson's intervals: Newcombe (1998), Statistics in Medicine 17:2635, method 10.
    """
    n = both + first + second + neither
    if not n:
        return -1.0, 1.0
    a, b = (both + first) / n, (both + second) / n
    (a_low, a_high), (b_low, b_high) = wilson(both + first, n), wilson(both + second, n)
    agreement: float = both * neither - first * second
    if agreement > 0:
        agreement = max(agreement - n / 2, 0.0)
    spread = math.sqrt((both + first) * (second + neither) * (both + second) * (first + neither))
    phi = agreement / spread if spread else 0.0
    below, above = (
        math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))
        for x, y in ((a - a_low, b_high - b), (b - b_low, a_high - a))
    )
    return a - b - below, a - b + above
