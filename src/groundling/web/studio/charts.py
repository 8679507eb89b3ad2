"""Several runs on one chart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from groundling.reporting.charts import Chart, Curve
from groundling.reporting.plot import smooth
from groundling.web.studio.studio import Studio

MEASURES = {"bits per byte": "bits_per_byte", "validation loss": "validation_loss", "training loss": "loss"}
"""What can be compared, and its name in the files. Only the first means the same with different tokenizers."""
_UNITS = {"bits_per_byte": "of the validation part", "validation_loss": "nats a token", "loss": "nats a token"}
_LOOKS = 6  # colours, which then come round again


def comparison(
    studio: Studio, names: Sequence[str], measure: str, axis: str
) -> tuple[Chart | None, float, list[str]]:  # fmt: skip
    """A curve for each run, where the chart ends, and the runs that have logged nothing yet."""
    key, curves, missing = MEASURES[measure], list[Curve](), list[str]()
    along = "step" if axis == "step" else "elapsed"
    for number, name in enumerate(names):
        live = studio.live(name)
        with suppress(ValueError):  # damaged
            live.refresh()
        lines = live.facts.steps if live.facts and key == "loss" else live.facts.evaluations if live.facts else []
        if not lines:
            missing.append(name)
            continue
        y = np.array([line[key] for line in lines], dtype=float)
        x = [float(line[along]) for line in lines]
        curves.append(Curve(name, f"tone-{number % _LOOKS}", x, smooth(y) if key == "loss" else y))
    if not curves:
        return None, 1.0, missing
    said = f"{measure.capitalize()} of {', '.join(curve.name for curve in curves)}."
    last = max(float(curve.x[-1]) for curve in curves)
    # The first evaluations stand far above all that matters.
    ends = [float(np.nanmin(curve.y)) for curve in curves]
    high = max(ends) + 2.0 * max(max(ends) - min(ends), 0.25 * max(ends))
    every = max(float(np.nanmax(curve.y)) for curve in curves)
    unit = f"{_UNITS[key]}, over {axis}s"
    chart = Chart("compared", measure.capitalize(), unit, curves, said, "{:.4g}".format, high=min(high, every))
    return chart, last, missing
