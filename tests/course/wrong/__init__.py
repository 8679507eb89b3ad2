"""Wrong answers to the exercises, as learners give them, each with a part of the sentence that its check must say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

WRONG: list[tuple[str, str, Callable[..., Any]]] = []  # exercise, part of the sentence, the answer


def wrong(exercise: str, sentence: str) -> Callable[[F], F]:
    """Mark a function as a wrong answer to `exercise`, whose check says `sentence`."""

    def mark(answer: F) -> F:
        WRONG.append((exercise, sentence, answer))
        return answer

    return mark
