"""The weights of a mix of texts: what `--mix` and `train(mix={...})` accept."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

MIX_OR_CORPUS = "Use CORPUS or --mix, not both: --mix names its texts itself."
MOST_TEXTS = 100
"""In a mix."""


@dataclass(frozen=True)
class Mix:
    """The weights of each text, at the start and at the end of `steps` steps. Between, they change linearly; after that
    they stay. Only their ratio counts. Raises ValueError if they are no weights."""

    weights: tuple[tuple[float, float], ...]
    steps: int = 0
    """0 until a run is planned."""

    def __post_init__(self) -> None:
        numbers = [weight for pair in self.weights for weight in pair]
        bad = [weight for weight in numbers if not (weight >= 0 and math.isfinite(weight))]
        if bad:
            raise ValueError(f"--mix: a weight must be 0 or a positive number, not {bad[0]}.")
        if not 0 < len(self.weights) <= MOST_TEXTS or self.steps < 0:
            raise ValueError(f"--mix takes 1 to {MOST_TEXTS} texts.")
        if not all(map(any, zip(*self.weights, strict=True))):
            raise ValueError("--mix: all weights are 0. Give some text a positive weight.")

    @property
    def shares(self) -> list[tuple[Fraction, Fraction]]:
        """The exact share of each text at the start and at the end. Both add up to 1."""
        starts, ends = zip(*((Fraction(str(a)), Fraction(str(b))) for a, b in self.weights), strict=True)
        return [(a / sum(starts), b / sum(ends)) for a, b in zip(starts, ends, strict=True)]

    @property
    def is_normal(self) -> bool:
        """Whether the weights are shares already."""
        return all(abs(sum(column) - 1) < 1e-3 for column in zip(*self.weights, strict=True))

    @property
    def words(self) -> list[str]:
        """The weights as `--mix` takes them: `0.7`, or `0.9:0.1` if it changes."""
        shown = [[str(weight).removesuffix(".0") for weight in pair] for pair in self.weights]
        return [start if start == end else f"{start}:{end}" for start, end in shown]

    def __str__(self) -> str:
        return ", ".join(self.words)


def read_mix(given: Any) -> tuple[list[str], Mix]:
    """The paths and weights of a mix: words as on the command line, such as `a.txt=0.7` or `a.txt=0.9:0.1`, or a
    mapping from paths to weights or pairs of them. Raises ValueError or TypeError with a sentence."""
    if isinstance(given, Mapping):
        pairs = [(os.fspath(path), weight) for path, weight in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        pairs = list(map(_pair, given))
    else:
        raise TypeError(f"mix must be a dict of paths and weights, not {type(given).__name__}.")
    paths = [path for path, _ in pairs]
    again = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
    if again is not None:
        raise ValueError(f"--mix has {again} twice. Give each text once, with its whole weight.")
    return paths, Mix(tuple(_weights(path, weight) for path, weight in pairs))


def _pair(word: str) -> tuple[str, list[str]]:
    path, _, weight = word.rpartition("=")
    if not path:
        raise ValueError(f"--mix {word!r}: give each text a weight, such as {word}=0.5.")
    return path, weight.split(":")


def _weights(path: str, given: Any) -> tuple[float, float]:
    """One weight, or a pair from start to end."""
    parts = list(given) if isinstance(given, list | tuple) else [given]
    try:
        if not 1 <= len(parts) <= 2 or any(isinstance(part, bool) for part in parts):
            raise ValueError
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        shown = ":".join(map(str, parts))
        raise ValueError(f"--mix {path}={shown}: a weight is a number, or two with a colon, such as 0.9:0.1.") from None
    return numbers[0], numbers[-1]
