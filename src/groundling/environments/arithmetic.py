"""Arithmetic in steps that are small enough to learn: sums with running totals, products digit by digit."""

from __future__ import annotations

from typing import ClassVar

from groundling.environments.environment import Drawn, Draws, Environment


class Sums(Environment):
    """`47+38-29=` → `47+38=85;85-29=56;#56`. No total is below zero."""

    name = "sums"
    about = "Add and subtract two-digit numbers. The working has a running total for each step."
    levels: ClassVar = {1: "2 terms", 2: "3 terms", 3: "4 terms", 4: "5 terms"}
    default_level = 2

    def draw(self, draws: Draws, level: int) -> Drawn | None:
        """As in `Environment`."""
        total = 10 + draws.below(90)
        terms, steps = [str(total)], list[str]()
        for _ in range(level):
            term, minus = 10 + draws.below(90), draws.below(2)
            signed = f"-{term}" if minus and term <= total else f"+{term}"
            steps.append(f"{total}{signed}={total + int(signed)}")
            total += int(signed)
            terms.append(signed)
        calls = tuple(step.partition("=")[0] for step in steps)
        key = " ".join(sorted([f"+{terms[0]}", *terms[1:]]))
        return Drawn(f"{''.join(terms)}=", ";".join(steps), str(total), key, {"calls": calls})

    def longest(self, level: int = 0) -> tuple[int, int]:
        level = self.checked_level(level)
        return 3 * level + 3, 11 * level + 3  # a step such as 123+45=168, and one character less in the first


class Multiply(Environment):
    """`347*6=` → `7*6+0=42;4*6+4=28;3*6+2=20;#2082`: each step carries the tens of the one before."""

    name = "multiply"
    about = "Multiply a number by a digit. The working goes digit by digit from the right, with carries."
    levels: ClassVar = {1: "2 digits", 2: "3 digits", 3: "4 digits", 4: "6 digits"}
    default_level = 3
    _DIGITS: ClassVar = {1: 2, 2: 3, 3: 4, 4: 6}

    def draw(self, draws: Draws, level: int) -> Drawn | None:
        """As in `Environment`."""
        digits = self._DIGITS[level]
        number, factor = 10 ** (digits - 1) + draws.below(9 * 10 ** (digits - 1)), 2 + draws.below(8)
        steps, carry = list[str](), 0
        for digit in reversed(str(number)):
            product = int(digit) * factor + carry
            steps.append(f"{digit}*{factor}+{carry}={product}")
            carry = product // 10
        question = f"{number}*{factor}"
        return Drawn(f"{question}=", ";".join(steps), str(number * factor), question, {"calls": (question,)})

    def longest(self, level: int = 0) -> tuple[int, int]:
        digits = self._DIGITS[self.checked_level(level)]
        return digits + 3, 10 * digits + 2
