"""Keep track of a state: which letter stands where after some swaps."""

from __future__ import annotations

import math
import re
from typing import ClassVar

from groundling.environments.environment import Drawn, Draws, Environment


class Swaps(Environment):
    """`bfh 12 23=` → `fbh;fhb;#fhb`: the letters at positions 1 and 2 swap places, then those at 2 and 3."""

    name = "swaps"
    about = "Swap letters by their positions. The working is the order after each swap."
    levels: ClassVar = {1: "3 letters, 4 swaps", 2: "4 letters, 5 swaps", 3: "5 letters, 7 swaps"}
    default_level = 2
    _SWAPS: ClassVar = {1: 4, 2: 5, 3: 7}

    def draw(self, draws: Draws, level: int) -> Drawn | None:
        """As in `Environment`."""
        state = draws.shuffled("abcdefgh")[: level + 2]
        asked, steps = ["".join(state)], list[str]()
        for _ in range(self._SWAPS[level]):
            i, j = sorted(draws.shuffled(range(level + 2))[:2])
            state[i], state[j] = state[j], state[i]
            asked.append(f"{i + 1}{j + 1}")
            steps.append("".join(state))
        prompt = " ".join(asked)
        return Drawn(f"{prompt}=", ";".join(steps), steps[-1], key=prompt)

    def longest(self, level: int = 0) -> tuple[int, int]:
        level = self.checked_level(level)
        letters, swaps = level + 2, self._SWAPS[level]
        return letters + 3 * swaps + 1, (letters + 1) * (swaps + 1)

    def well_formed(self, answer: str) -> bool:
        return re.fullmatch("[a-h]+", answer) is not None

    def chance(self, level: int = 0) -> float:
        """The accuracy of a guess that only counts the swaps: an even number reaches one half of all orders, an odd
        number the other, each of them about as often."""
        return 2 / math.factorial(self.checked_level(level) + 2)
