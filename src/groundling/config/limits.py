"""The numbers that an option accepts, and the sentence that refuses the others."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Limits:
    """From `least` to `most`: whole numbers, or all with `fractions`. `above` and `below` exclude the ends."""

    least: float
    most: float = 10**12  # more than anyone needs, and no product of a few such numbers overflows
    fractions: bool = False
    above: bool = False
    below: bool = False

    def check(self, option: str, value: Any) -> None:
        """Raise ValueError that names the option if `value` is not a number, or out of range."""
        is_number = isinstance(value, Real if self.fractions else Integral) and not isinstance(value, bool)
        if not is_number:
            kind = "a number" if self.fractions else "a whole number"
            raise ValueError(f"{option} must be {kind}, not {value!r:.80}.")
        if not (value > self.least if self.above else value >= self.least):  # NaN is not
            raise ValueError(
                f"{option} must be {'above' if self.above else 'at least'} {self.least:,}, not {value!s:.20}."
            )
        if not (value < self.most if self.below else value <= self.most):
            raise ValueError(
                f"{option} must be {'below' if self.below else 'at most'} {self.most:,}, not {value!s:.20}."
            )


SHARE = Limits(0, 1, fractions=True)
POSITIVE = Limits(0, 1e30, fractions=True, above=True)
MINUTES = Limits(0.2, 14 * 24 * 60, fractions=True)  # two weeks
MOST_VALIDATION = 0.5
SEED = Limits(0, 2**63 - 1)
TOKENS = Limits(0)
VOCAB_SIZE = Limits(257, 2**22)
WIDTH = Limits(1, 2**20)
BLOCK_SIZE = Limits(1, 2**24)
BLOCK_SIZE_OR_0 = Limits(0, 2**24)
PORT = Limits(0, 2**16 - 1)
TASK = {
    "level": Limits(0, 1000), "items": Limits(1, 10_000), "attempts": Limits(0, 256), "seed": SEED,
    "temperature": Limits(0, 100, fractions=True),
}  # fmt: skip
"""Of scoring a run on a task."""
