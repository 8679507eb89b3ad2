"""A calculator for whole numbers that may read what a model wrote: exact, and bounded in length, digits and depth."""

from __future__ import annotations

import re

MOST_CHARACTERS = 64
DEEPEST = 8  # parentheses

_TOKEN = re.compile(r"0|[1-9][0-9]{0,8}|[-+*/()]")


def calculate(expression: str) -> str:
    """The value of `expression` in digits: `calculate("47+38")` is `"85"`. It is `"error"` for all that `evaluate`
    refuses."""
    try:
        return str(evaluate(expression)[0])
    except ValueError:
        return "error"


def evaluate(expression: str) -> tuple[int, list[int]]:
    """Value of an expression of whole numbers, + - * / and parentheses, and the numbers in it, in their order.

    Raises ValueError for anything else: spaces, leading zeros, more than 9 digits, 64 characters or 8 parentheses
    inside each other, and a division by zero or with a remainder.
    """
    if len(expression) > MOST_CHARACTERS:
        raise ValueError(f"The expression is longer than {MOST_CHARACTERS} characters.")
    tokens = _TOKEN.findall(expression)
    if "".join(tokens) != expression:
        raise ValueError("The expression has other characters than digits, + - * / and parentheses.")
    parser = _Parser(tokens)
    value = parser.sum(0)
    if parser.next:
        raise ValueError(f"The expression goes on with {parser.next} where it should end.")
    return value, [int(token) for token in tokens if token.isdigit()]


class _Parser:
    """Recursive descent, one method for each precedence."""

    def __init__(self, tokens: list[str]) -> None:
        self._rest = tokens[::-1]

    @property
    def next(self) -> str:
        return self._rest[-1] if self._rest else ""

    def sum(self, depth: int) -> int:
        sign = -1 if self._take("-") else 1
        value = sign * self._product(depth)
        while operator := self._take("+", "-"):
            term = self._product(depth)
            value = value + term if operator == "+" else value - term
        return value

    def _product(self, depth: int) -> int:
        value = self._factor(depth)
        while operator := self._take("*", "/"):
            factor = self._factor(depth)
            if operator == "*":
                value *= factor
            elif factor == 0 or value % factor:
                raise ValueError(f"{value} cannot be divided by {factor} without a remainder.")
            else:
                value //= factor
        return value

    def _factor(self, depth: int) -> int:
        if self._take("("):
            if depth == DEEPEST:
                raise ValueError(f"More than {DEEPEST} parentheses are inside each other.")
            value = self.sum(depth + 1)
            if not self._take(")"):
                raise ValueError("A parenthesis is not closed.")
            return value
        if not self.next.isdigit():
            raise ValueError("A number is missing in the expression.")
        return int(self._rest.pop())

    def _take(self, *tokens: str) -> str:
        """The next token if it is one of these, else an empty string."""
        return self._rest.pop() if self.next in tokens else ""
