"""One chart that compares several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from groundling.reporting.charts import Chart, Curve
from groundling.reporting.plot import smooth
from groundling.web.studio.studio import Studio

MEASURES = {
    "bits per byte": "bits_per_byte", "validation loss": "validation_loss", "training loss": "loss",
    "accuracy": "accuracy", "reward": "reward", "signal": "signal", "entropy": "entropy", "tokens per reply": "length",
}  # fmt: skip
"""Metrics to compare, and their keys in the log. Only bits per byte is comparable across tokenizers."""
_OF_STEPS = ("loss", "reward", "signal", "entropy", "length")
_UNITS = {
    "bits_per_byte": "of the validation part", "validation_loss": "nats per token", "loss": "nats per token",
    "accuracy": "of the validation part", "reward": "of training", "entropy": "nats per token",
}  # fmt: skip
_COLORS = 6  # they repeat after that


def comparison(
    studio: Studio, names: Sequence[str], measure: str, axis: str
) -> tuple[Chart | None, float, list[str]]:  # fmt: skip
    """One curve per run. Returns the chart, where its x-axis ends, and the runs that have logged nothing yet.

    `axis` is "step" or "second".
    """
    key, curves, missing = MEASURES[measure], list[Curve](), list[str]()
    along = "step" if axis == "step" else "elapsed"
    for number, name in enumerate(names):
        live = studio.live(name)
        with suppress(ValueError):  # damaged
            live.refresh()
        facts = live.facts
        lines = [] if facts is None else facts.steps if key in _OF_STEPS else facts.evaluations
        points = [(float(line[along]), value) for line in lines if (value := _value(line, key)) is not None]
        if not points:
            missing.append(name)
            continue
        x, y = np.array(points, dtype=float).T
        curves.append(Curve(name, f"tone-{number % _COLORS}", x, smooth(y) if key in _OF_STEPS else y))
    if not curves:
        return None, 1.0, missing
    label = f"{measure.capitalize()} of {', '.join(curve.name for curve in curves)}."
    last = max(float(curve.x[-1]) for curve in curves)
    unit = f"{_UNITS.get(key, '')}, over {axis}s".removeprefix(", ")
    high = max(float(np.nanmax(curve.y)) for curve in curves)
    if "loss" in measure or key == "bits_per_byte":  # the first evaluations are so high that they flatten the rest
        ends = [float(np.nanmin(curve.y)) for curve in curves]
        high = min(high, max(ends) + 2.0 * max(max(ends) - min(ends), 0.25 * max(ends)))
    return Chart("compared", measure.capitalize(), unit, curves, label, "{:.4g}".format, high=high), last, missing


def _value(line: Mapping[str, Any], key: str) -> float | None:
    """A figure of a step or an evaluation, or None if it has none."""
    if key == "validation_loss" and "metric" in line:  # not a loss in nats per token
        return None
    if key == line.get("metric"):
        key = "validation_loss"
    return line[key] if key in line else line.get("figures", {}).get(key)
