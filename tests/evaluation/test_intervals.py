"""Wilson's interval, the paired difference and pass@k, against values from the literature and counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from groundling.evaluation.intervals import paired_difference, pass_at_k, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    ],
)  # fmt: skip
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)
    mirrored = wilson(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=6e-5)


def test_wilson_at_the_ends() -> None:
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 7)[0] == 0 and wilson(7, 7)[1] == 1
    for successes, n in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="successes must be from 0 to n"):
            wilson(successes, n)


def test_pass_at_k_is_the_share_of_choices_with_a_right_one() -> None:
    for n, c in itertools.product(range(1, 7), range(7)):
        for k in range(1, n + 1) if c <= n else ():
            choices = list(itertools.combinations(range(n), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(min(each) < c for each in choices) / len(choices))
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(10_000, 3, 1) == pytest.approx(0.0003)
    for wrong in ((5, 6, 1), (5, 2, 0), (5, 2, 6), (5, -1, 1)):
        with pytest.raises(ValueError, match="pass@k needs"):
            pass_at_k(*wrong)


def test_the_paired_difference_holds_the_true_one_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for shares in ([0.4, 0.2, 0.1, 0.3], [0.05, 0.3, 0.02, 0.63], [0.9, 0.06, 0.02, 0.02], [0.3, 0.2, 0.2, 0.3]):
        for n in (30, 256):
            intervals = [paired_difference(*counts) for counts in rng.multinomial(n, shares, 2_000).tolist()]
            held = np.mean([low <= shares[1] - shares[2] <= high for low, high in intervals])
            assert 0.935 < held < 0.995, (shares, n, held)


def test_the_paired_difference() -> None:
    low, high = paired_difference(90, 40, 20, 50)
    error = 1.96 * (60 - 20**2 / 200) ** 0.5 / 200  # Wald's, which is right for large samples
    assert (low, high) == pytest.approx((0.1 - error, 0.1 + error), abs=0.004)
    assert paired_difference(90, 20, 40, 50) == pytest.approx((-high, -low))
    low, high = paired_difference(0, 0, 0, 20)
    assert -0.2 < low < 0 < high < 0.2  # unlike Wald's, which is 0 wide
    assert paired_difference(0, 0, 0, 0) == (-1, 1)
    independent = (paired_difference(25, 25, 25, 25)[1], 1.96 * (2 * 0.25 / 100) ** 0.5)
    assert independent[0] == pytest.approx(independent[1], abs=0.006)
