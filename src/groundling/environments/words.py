"""Tasks about made-up words: spell one backwards, count a letter."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import ClassVar

from groundling.environments.environment import Drawn, Draws, Environment

_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def word(draws: Draws, length: int, consonants: str = _CONSONANTS, vowels: str = _VOWELS) -> str:
    """A pronounceable word: consonants and vowels take turns."""
    first = draws.below(2)
    return "".join(draws.choice((consonants, vowels)[(first + i) % 2]) for i in range(length))


class Reverse(Environment):
    """`reverse: stone` → `1s2t3o4n5e;5e4n3o2t1s;#enots`"""

    name = "reverse"
    about = "Spell a word backwards. The working numbers its letters, forwards and then backwards."
    levels: ClassVar = {1: "3 to 4 letters", 2: "5 to 6 letters", 3: "7 to 8 letters"}
    default_level = 2

    def draw(self, draws: Draws, level: int) -> Drawn | None:
        """As in `Environment`."""
        plain = word(draws, 2 * level + 1 + draws.below(2))
        numbered = [f"{i}{letter}" for i, letter in enumerate(plain, start=1)]
        working = f"{''.join(numbered)};{''.join(reversed(numbered))}"
        return Drawn(f"reverse: {plain}", working, plain[::-1], key=plain)

    def longest(self, level: int = 0) -> tuple[int, int]:
        letters = 2 * self.checked_level(level) + 2
        return 9 + letters, 5 * letters + 3

    def well_formed(self, answer: str) -> bool:
        return re.fullmatch("[a-z]+", answer) is not None

    def chance(self, level: int = 0) -> float:
        """The accuracy of the word's letters in a random order, exact for each of 1,000 words, and its mean."""
        words = [self.item(i, "train", level).answer for i in range(1_000)]
        orders = [math.factorial(len(w)) / math.prod(map(math.factorial, Counter(w).values())) for w in words]
        return sum(1 / n for n in orders) / len(orders)


class Count(Environment):
    """`a in banana=` → `b0a1n1a2n2a3;#3`"""

    name = "count"
    about = "Count a letter in a word. The working is a running count."
    levels: ClassVar = {1: "5 to 6 letters", 2: "7 to 10 letters", 3: "11 to 14 letters"}
    default_level = 2
    _LETTERS: ClassVar = {1: (5, 6), 2: (7, 10), 3: (11, 14)}

    def draw(self, draws: Draws, level: int) -> Drawn | None:
        """As in `Environment`."""
        least, most = self._LETTERS[level]
        consonants, vowels = draws.shuffled(_CONSONANTS)[:3], draws.shuffled(_VOWELS)[:2]  # few, so that they repeat
        letter = draws.choice([*consonants, *vowels])
        text = word(draws, least + draws.below(most - least + 1), "".join(consonants), "".join(vowels))
        working = "".join(f"{each}{text[:i].count(letter)}" for i, each in enumerate(text, start=1))
        return Drawn(f"{letter} in {text}=", working, str(text.count(letter)), key=f"{letter} {text}")

    def longest(self, level: int = 0) -> tuple[int, int]:
        letters = self._LETTERS[self.checked_level(level)][1]
        return 6 + letters, 2 * letters + 3
