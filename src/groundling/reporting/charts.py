"""Curves as vector graphics, in few enough points to draw: what of a chart a page needs to show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

_F64 = npt.NDArray[np.float64]

_POINTS = 800  # of a curve: two for each place that a wide screen has
_SIDE = 1000  # of the drawing, in its own units; the page stretches it to its width
_APART = 4.5  # per cent of the height between two labels, so that they do not lie on each other


@dataclass(frozen=True)
class Curve:
    """Values over steps. `look` is how it is drawn, a class in the styles of the page."""

    name: str
    look: str
    x: Sequence[float] | _F64
    y: Sequence[float] | _F64


@dataclass(frozen=True)
class Line:
    """A labelled level."""

    level: float
    label: str


@dataclass(frozen=True)
class Chart:
    """One set of axes. `low` and `high` bound the axis of values where they are given, else the curves do; it reaches
    to all `lines`.

    `best` is a step with its value, which is marked. `said` is what a reader who cannot see it is told.
    """

    key: str
    title: str
    unit: str
    curves: Sequence[Curve]
    said: str
    show: Callable[[float], str]
    lines: Sequence[Line] = field(default=())
    best: tuple[float, float] | None = None
    low: float | None = None
    high: float | None = None


def drawn(chart: Chart, last_step: float) -> dict[str, Any] | None:
    """The chart as reporting/run_page.html draws it, with steps from 0 to `last_step`; None if it has no finite value.

    Places are in per cent from the left or the top. `readings` are the curves' points, to be looked up by step.
    """
    curves = [(curve, *_finite(curve)) for curve in chart.curves]
    curves = [(curve, x, y) for curve, x, y in curves if len(x)]
    if not curves:
        return None
    low, high = _bounds(chart, [y for _, _, y in curves])
    span = max(last_step, 1)

    def left(x: float) -> float:
        return round(100 * x / span, 2)

    def top(y: float) -> float:
        return round(100 * (high - y) / (high - low), 2)

    thinned = [(curve, *thin(x, y)) for curve, x, y in curves]
    best = None
    if chart.best is not None:
        x, y = chart.best
        best = {"left": left(x), "top": top(y), "label": f"best {chart.show(y)} at step {x:,.0f}"}
    return {
        "key": chart.key,
        "title": chart.title,
        "unit": chart.unit,
        "said": chart.said,
        "curves": [
            {
                "name": curve.name,
                "look": curve.look,
                "path": _path(x / span, (high - y) / (high - low)),
                "dots": _dots(x / span, (high - y) / (high - low)) if len(x) <= 40 and curve.look != "raw" else "",
                "last": chart.show(float(y[-1])),
            }
            for curve, x, y in thinned
        ],
        "across": [{"left": left(x), "label": f"{x:,.0f}"} for x in _ticks(0, span, 4) if x == int(x)],
        "up": [{"top": top(y), "label": chart.show(y)} for y in _ticks(low, high, 5)],
        "lines": _labelled(chart.lines, top),
        "best": best,
        "readings": [
            {"name": curve.name, "x": _plain(x), "y": [chart.show(float(value)) for value in y]}
            for curve, x, y in thinned
            if curve.look != "raw"
        ],
    }


def thin(x: _F64, y: _F64, points: int = _POINTS) -> tuple[_F64, _F64]:
    """At most about so many points of a curve: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(x) <= points:
        return x, y
    kept = {0, len(x) - 1}
    for start, stop in pairwise(np.linspace(0, len(x), points // 2 + 1).astype(int).tolist()):
        kept |= {start + int(y[start:stop].argmin()), start + int(y[start:stop].argmax())}
    order = sorted(kept)
    return x[order], y[order]


def _finite(curve: Curve) -> tuple[_F64, _F64]:
    x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
    return x[np.isfinite(y)], y[np.isfinite(y)]


def _bounds(chart: Chart, values: Sequence[_F64]) -> tuple[float, float]:
    levels = [line.level for line in chart.lines]
    low = min([*levels, min(float(y.min()) for y in values) if chart.low is None else chart.low])
    high = max([*levels, max(float(y.max()) for y in values) if chart.high is None else chart.high])
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if chart.low is not None else low - room), high + room


def _ticks(low: float, high: float, about: int) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    places = MaxNLocator(about, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(place) for place in places if low <= place <= high]


def _labelled(lines: Sequence[Line], top: Callable[[float], float]) -> list[dict[str, Any]]:
    """From the lowest up; a label that would lie on the one below it is moved up."""
    found, label_top = list[dict[str, Any]](), math.inf
    for line in sorted(lines, key=lambda line: line.level):
        label_top = min(top(line.level), label_top - _APART)
        found.append({"top": top(line.level), "label": line.label, "label_top": round(label_top, 2)})
    return found


def _path(x: _F64, y: _F64) -> str:
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in _units(x, y))


def _dots(x: _F64, y: _F64) -> str:
    """Lines of no length: drawn with round ends, they are dots that stay round however the drawing is stretched."""
    return "".join(f"M{a:g} {b:g}h0" for a, b in _units(x, y))


def _units(x: _F64, y: _F64) -> list[tuple[float, float]]:
    return list(zip((_SIDE * x).round(1).tolist(), (_SIDE * y).round(1).tolist(), strict=True))


def _plain(x: _F64) -> list[int]:
    return [int(value) for value in x]
