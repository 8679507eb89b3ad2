"""One chart that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from groundling.reporting.charts import Chart, Curve
from groundling.reporting.plot import smooth
from groundling.web.studio.studio import Studio

MEASURES = {"bits per byte": "bits_per_byte", "validation loss": "validation_loss", "training loss": "loss"}
"""Metrics to compare, and their keys in the log. Only bits per byte is comparable across tokenizers."""
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
        lines = [] if facts is None else facts.steps if key == "loss" else facts.evaluations
        if not lines:
            missing.append(name)
            continue
        x = [float(line[along]) for line in lines]
        y = np.array([line[key] for line in lines], dtype=float)
        curves.append(Curve(name, f"tone-{number % _COLORS}", x, smooth(y) if key == "loss" else y))
    if not curves:
        return None, 1.0, missing
    label = f"{measure.capitalize()} of {', '.join(curve.name for curve in curves)}."
    last = max(float(curve.x[-1]) for curve in curves)
    # The first evaluations are so high that they would flatten the rest.
    ends = [float(np.nanmin(curve.y)) for curve in curves]
    high = max(ends) + 2.0 * max(max(ends) - min(ends), 0.25 * max(ends))
    unit = f"{'of the validation part' if key == 'bits_per_byte' else 'nats per token'}, over {axis}s"
    high = min(high, max(float(np.nanmax(curve.y)) for curve in curves))
    return Chart("compared", measure.capitalize(), unit, curves, label, "{:.4g}".format, high=high), last, missing
