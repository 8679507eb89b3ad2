"""What the course measured at class scale on two cores, over several seeds: `measured.json`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Figure:
    """The range of a figure over seeds."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = f"{self.low:.4g}", f"{self.high:.4g}"
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Measured:
    figures: dict[str, Figure]
    seconds: dict[int, float]  # of computing, for each chapter
    seeds: int
    gflops: float  # of the machine, in float32, as `machine.matmul_gflops` measures it


@cache
def measured() -> Measured:
    """Written by `python benchmarks/course.py`."""
    content = json.loads((files("groundling.course") / "measured.json").read_text(encoding="utf-8"))
    return Measured(
        {name: Figure(*range) for name, range in content["figures"].items()},
        {int(number): seconds for number, seconds in content["seconds"].items()},
        content["seeds"],
        content["gflops"],
    )


def filled(prose: str) -> str:
    """Prose with the measured range of each figure in place of its `{{name}}`."""

    def range_of(match: re.Match[str]) -> str:
        figure = measured().figures.get(match[1])
        return str(figure) if figure else f"(your {match[1].replace('_', ' ')})"

    return re.sub(r"\{\{(\w+)\}\}", range_of, prose)


def minutes(number: int, gflops: float) -> float | None:
    """Minutes of computing that a chapter takes on a machine of this speed. None if it was not measured."""
    seconds = measured().seconds.get(number)
    return None if seconds is None else seconds * measured().gflops / gflops / 60
