"""Countdown: reach a number with the four operations. Many answers are right, so a model can find its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import permutations
from typing import ClassVar

from groundling.environments.calculator import evaluate
from groundling.environments.environment import Drawn, Draws, Environment, Item

_MOST = 99  # no step in our workings goes beyond it
_PRECEDENCE = {"+": 1, "-": 1, "*": 2}


def uses_each_once(answer: str, numbers: list[int], target: int) -> bool:
    """Whether `answer` is an expression with exactly these numbers and this value, without a sign before a number."""
    try:
        value, used = evaluate(answer)
    except ValueError:
        return False
    return value == target and sorted(used) == sorted(numbers) and not re.search(r"(^|\()-", answer)


class Countdown(Environment):
    """`3 5 7 -> 26` → `3*5=15,15+7=22;3*7=21,21+5=26;#3*7+5`: up to two tries that miss, then one that hits."""

    name = "countdown"
    about = "Reach a target with all of the numbers, each used once. The working is a search: tries, then a hit."
    _NUMBERS: ClassVar = {1: (2, 20), 2: (3, 25), 3: (4, 10), 4: (4, 20)}
    levels: ClassVar = {level: f"{n} numbers up to {most}" for level, (n, most) in _NUMBERS.items()}
    default_level = 2

    def draw(self, draws: Draws, level: int) -> Drawn | None:
        """As in `Environment`."""
        n, most = self._NUMBERS[level]
        numbers = [1 + draws.below(most) for _ in range(n)]
        hit = _try(draws, numbers)
        if hit is None:
            return None
        steps, expression, target = hit
        tries, calls = list[str](), list[str]()
        misses = draws.below(3)
        for _ in range(6):
            if len(tries) == misses:
                break
            miss = _try(draws, numbers)
            if miss and miss[2] != target and miss[0] not in tries:
                tries.append(miss[0])
                calls.append(miss[1])
        prompt = f"{' '.join(map(str, numbers))} -> {target}"
        key = f"{' '.join(map(str, sorted(numbers)))} {target}"
        data = {"numbers": numbers, "target": target, "calls": (*calls, expression)}
        return Drawn(prompt, ";".join([*tries, steps]), expression, key, data)

    def longest(self, level: int = 0) -> tuple[int, int]:
        n, _ = self._NUMBERS[self.checked_level(level)]
        a_try = 9 * (n - 1) - 1  # such as 99-15=84
        parentheses = {2: 0, 3: 2, 4: 4}[n]
        return 3 * n + 5, 3 * (a_try + 1) + 1 + 3 * n - 1 + parentheses

    def well_formed(self, answer: str) -> bool:
        try:
            return evaluate(answer) is not None
        except ValueError:
            return False

    def right(self, item: Item, answer: str) -> bool:
        return uses_each_once(answer, item.data["numbers"], item.data["target"])

    def chance(self, level: int = 0) -> float:
        """The accuracy of combining the numbers at random with + - *: exact for each of 100 items, by going through
        all ways, and its mean."""
        total = 0.0
        for i in range(100):
            data = self.item(i, "train", level).data
            values = list(_values(data["numbers"]))
            total += values.count(data["target"]) / len(values)
        return total / 100


def _try(draws: Draws, numbers: list[int]) -> tuple[str, str, int] | None:
    """Steps, expression and value of the numbers combined at random. None if a step is not in 1 to 99."""
    pool = [(str(number), number, 3) for number in numbers]
    steps = []
    while len(pool) > 1:
        (left, a, left_precedence), (right, b, right_precedence) = (pool.pop(draws.below(len(pool))) for _ in "ab")
        operator = draws.choice("+-*")
        value = {"+": a + b, "-": a - b, "*": a * b}[operator]
        if not 1 <= value <= _MOST:
            return None
        steps.append(f"{a}{operator}{b}={value}")
        precedence = _PRECEDENCE[operator]
        if left_precedence < precedence:
            left = f"({left})"
        if right_precedence < precedence + (operator == "-"):
            right = f"({right})"
        pool.append((f"{left}{operator}{right}", value, precedence))
    return ",".join(steps), pool[0][0], pool[0][1]


def _values(numbers: list[int]) -> Iterator[int]:
    """The value of every way to combine the numbers two at a time."""
    if len(numbers) == 1:
        yield numbers[0]
    for i, j in permutations(range(len(numbers)), 2):
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        for value in (numbers[i] + numbers[j], numbers[i] - numbers[j], numbers[i] * numbers[j]):
            yield from _values([*rest, value])
