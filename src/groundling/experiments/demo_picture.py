"""The picture of a demonstration: the accuracy of each stage, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from groundling import storage
from groundling.reporting.plot import default_style


@default_style()
def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Draw the rows of `demo` to a PNG file, one panel for each task. Returns the path."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    panels = [[row for row in rows if row["task"] == task] for task in tasks]
    figure = Figure(figsize=(9, 0.6 + 0.5 * len(rows)), dpi=130, layout="constrained")
    heights = [len(panel) + 1 for panel in panels]
    every = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(every, panels, strict=True):
        _panel(axes, panel)
    with storage.readable_errors(path, 100_000):
        figure.savefig(path, format="png")
    return path


def _panel(axes: Any, rows: list[dict[str, Any]]) -> None:
    values = [100 * row["accuracy"] for row in rows]
    below, above = ([100 * abs(row["accuracy"] - row["interval"][end]) for row in rows] for end in (0, 1))
    style = {"color": "#9db4c8", "ecolor": "#3c4a57", "capsize": 3, "height": 0.6}
    axes.barh([row["stage"] for row in rows], values, xerr=[below, above], **style)
    axes.axvline(100 * rows[0]["chance"], color="#7a7a7a", linestyle=":", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    kind = "sampled" if rows[0]["temperature"] else "most likely"
    title = f"{rows[0]['task']}: right answers to {rows[0]['items']:,} unseen items, in percent of the {kind} replies"
    axes.set_title(f"{title}\n(dotted: chance; diamond: the run it is compared with)", loc="left", fontsize=9)
    for place, row in enumerate(rows):
        if row["against"]:
            axes.plot(100 * row["against"]["accuracy"], place, "D", color="#3c4a57", markersize=4)
    for place, row in enumerate(rows):
        axes.text(100 * row["interval"][1] + 1.5, place, f"{row['accuracy']:.1%}", va="center", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
