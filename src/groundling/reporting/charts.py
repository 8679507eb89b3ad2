"""Charts as vector graphics: curves in few enough points to draw, axes, labels and readings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling.reporting.plot import default_style

_F64 = npt.NDArray[np.float64]

_POINTS = 800  # of a curve: two for each pixel column of a wide screen
_SIDE = 1000  # of the drawing, in its own units; the page stretches it to its width
_APART = 4.5  # between two labels, in percent of the height, so that they do not overlap


@dataclass(frozen=True)
class Curve:
    """Values over steps. `look` is a CSS class of the page."""

    name: str
    look: str
    x: Sequence[float] | npt.NDArray[Any]
    y: Sequence[float] | npt.NDArray[Any]


@dataclass(frozen=True)
class Line:
    """A labelled horizontal line."""

    level: float
    label: str


@dataclass(frozen=True)
class Chart:
    """One set of axes. `low` and `high` limit the vertical axis (default: the curves). It always includes all `lines`.

    `best` is a step and its value, which get a mark. `said` describes the chart to screen readers.
    """

    key: str
    title: str
    unit: str
    curves: Sequence[Curve]
    said: str
    show: Callable[[float], str]
    lines: Sequence[Line] = ()
    best: tuple[float, float] | None = None
    low: float | None = None
    high: float | None = None


def drawn(chart: Chart, last_step: float) -> dict[str, Any] | None:
    """The chart as reporting/run_page.html draws it, with steps from 0 to `last_step`. None without a finite value.

    Places are in percent from the left or the top. `readings` are the points of the curves, to look up by step.
    """
    curves = list[tuple[Curve, _F64, _F64]]()
    for curve in chart.curves:
        x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
        finite = np.isfinite(y)
        if finite.any():
            curves.append((curve, *thin(x[finite], y[finite])))
    if not curves:
        return None
    low, high = _bounds(chart, [y for _, _, y in curves])
    span = max(last_step, 1)

    def left(x: float) -> float:
        return round(100 * x / span, 2)

    def top(y: float) -> float:
        return round(100 * (high - y) / (high - low), 2)

    paths, readings = list[dict[str, Any]](), list[dict[str, Any]]()
    for curve, x, y in curves:
        across, down = (_SIDE * (x / span)).round(1), (_SIDE * ((high - y) / (high - low))).round(1)
        points = [f"{a:g} {b:g}" for a, b in zip(across.tolist(), down.tolist(), strict=True)]
        # A dot is a line of no length with round ends: it stays round however the drawing is stretched.
        dots = "".join(f"M{point}h0" for point in points) if len(x) <= 40 and curve.look != "raw" else ""
        shown = [chart.show(value) for value in y.tolist()]
        paths.append(
            {"name": curve.name, "look": curve.look, "path": "M" + "L".join(points), "dots": dots, "last": shown[-1]}
        )
        if curve.look != "raw":
            readings.append({"name": curve.name, "x": x.astype(int).tolist(), "y": shown})
    best = None
    if chart.best is not None:
        step, value = chart.best
        best = {"left": left(step), "top": top(value), "label": f"best {chart.show(value)} at step {step:,.0f}"}
    return {
        "key": chart.key,
        "title": chart.title,
        "unit": chart.unit,
        "said": chart.said,
        "curves": paths,
        "across": [{"left": left(x), "label": f"{x:,.0f}"} for x in _ticks(0, span, 4) if x == int(x)],
        "up": [{"top": top(y), "label": chart.show(y)} for y in _ticks(low, high, 5)],
        "lines": _labelled(chart.lines, top),
        "best": best,
        "readings": readings,
    }


def thin(x: _F64, y: _F64) -> tuple[_F64, _F64]:
    """At most about _POINTS points: the lowest and the highest of each stretch, so that spikes remain."""
    if len(x) <= _POINTS:
        return x, y
    kept = {0, len(x) - 1}
    for start, stop in pairwise(np.linspace(0, len(x), _POINTS // 2 + 1).astype(int).tolist()):
        kept |= {start + int(y[start:stop].argmin()), start + int(y[start:stop].argmax())}
    order = sorted(kept)
    return x[order], y[order]


def _bounds(chart: Chart, values: Sequence[_F64]) -> tuple[float, float]:
    levels = [line.level for line in chart.lines]
    low = min([*levels, min(float(y.min()) for y in values) if chart.low is None else chart.low])
    high = max([*levels, max(float(y.max()) for y in values) if chart.high is None else chart.high])
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if chart.low is not None else low - room), high + room


def _ticks(low: float, high: float, about: int) -> list[float]:
    with default_style():
        from matplotlib.ticker import MaxNLocator

        places = MaxNLocator(about, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(place) for place in places if low <= place <= high]


def _labelled(lines: Sequence[Line], top: Callable[[float], float]) -> list[dict[str, Any]]:
    """From the lowest line up. A label that would overlap the one below it moves up."""
    labelled, label_top = list[dict[str, Any]](), math.inf
    for line in sorted(lines, key=lambda line: line.level):
        label_top = min(top(line.level), label_top - _APART)
        labelled.append({"top": top(line.level), "label": line.label, "label_top": round(label_top, 2)})
    return labelled
