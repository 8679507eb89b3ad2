"""Checks of exercises: each is a function with the exercise's name, which calls the learner's function and raises
`Wrong` with a sentence about the first thing that is wrong.

A check begins with what must hold exactly (shapes, round trips, causality), and then compares with groundling's own
function. It never asks for a digit of a loss or for a time.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from groundling.course.chapter import chapters


class Wrong(Exception):
    """What is wrong with an answer, in a sentence for the learner."""


def expect(condition: object, sentence: str) -> None:
    """Raise `Wrong` with `sentence` unless the condition holds."""
    if not condition:
        raise Wrong(sentence)


def expect_written(source: str, name: str) -> None:
    """Raise `Wrong` if the last function of this name in `source` has only a docstring and `...`."""
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name]
    body = found[-1].body if found else []
    is_stub = body and all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)
    expect(not is_stub, "You have not written it yet.")


def expect_close(name: str, mine: Any, wanted: Any, tolerance: float = 1e-5, hint: str = "") -> None:
    """Compare numbers, arrays or tensors of one shape. The sentence says how far off they are, and then the hint."""
    import torch

    mine, wanted = torch.as_tensor(mine), torch.as_tensor(wanted)
    shapes = f"{name} should have shape {tuple(wanted.shape)}, not {tuple(mine.shape)}."
    expect(mine.shape == wanted.shape, f"{shapes} {hint}".strip())
    difference = (mine.double() - wanted.double()).abs().max().item() if mine.numel() else 0.0
    sentence = f"{name} differs from the right values by up to {difference:.3g}."
    expect(difference <= tolerance, f"{sentence} {hint}".strip())


@cache
def exercise_chapter(name: str) -> int:
    """The number of the chapter with this exercise. Raises `ValueError` if there is none."""
    for number, chapter in chapters().items():
        if name in chapter.exercises:
            return number
    raise ValueError(f"The course has no exercise {name}.")


def check_of(name: str) -> Callable[[Callable[..., Any]], None]:
    """The check of an exercise."""
    module = importlib.import_module(f"groundling.course.checks.chapter_{exercise_chapter(name)}")
    check: Callable[[Callable[..., Any]], None] = getattr(module, name)
    return check


def solution_of(name: str) -> Callable[..., Any]:
    """Our own answer to an exercise."""
    module = importlib.import_module(f"groundling.course.solutions.chapter_{exercise_chapter(name)}")
    answer: Callable[..., Any] = getattr(module, name)
    return answer
