"""Loss curves as PNG: one run with its training loss, or several runs to compare."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from groundling.training.events import VALIDATION_LOSS

_TRAINING, _VALIDATION, _MILESTONE = "#9db4c8", "#b5442e", "#7a7a7a"

Lines = Sequence[Mapping[str, Any]]


@contextmanager
def default_style() -> Iterator[None]:
    """matplotlib's own defaults, whatever MPLBACKEND or a matplotlibrc in the working folder says."""
    logging.getLogger("matplotlib").setLevel("ERROR")  # it warns if its own cache folder is new or cannot be written
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend:  # as it does itself, but a name that it does not know would end its import
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@default_style()
def plot_curves(histories: Mapping[str, Lines], path: Path) -> None:
    """Plot runs, by name, from the lines of their `metrics.jsonl`. Raises ValueError if no step was logged."""
    # The object interface: pyplot would keep global state and ask for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=130, layout="constrained")
    axes = figure.subplots()
    alone, metrics = len(histories) == 1, list[str]()
    for name, lines in histories.items():
        steps = [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]
        metrics.append(metric := _metric(lines))
        points = [(line["step"], line["validation_loss"]) for line in lines if line["event"] == "evaluation"]
        if not metric.endswith("loss"):  # the loss is no measure of progress
            steps = [(line["step"], line["figures"]["reward"]) for line in lines if "reward" in line.get("figures", ())]
        if steps and alone:
            x, y = np.array(steps).T
            axes.plot(x, y, color=_TRAINING, alpha=0.35, linewidth=0.8)
            axes.plot(x, smooth(y), color=_TRAINING, label="training (smoothed)")
        if points:
            x, y = np.array(points).T
            best = int(np.argmin(y) if metric.endswith("loss") else np.argmax(y))
            label = f"validation{'' if metric.endswith('loss') else ' ' + metric}"
            label = label if alone else f"{name}: best {y[best]:.3f} at step {int(x[best]):,}"
            (line,) = axes.plot(x, y, marker="o", markersize=3, label=label, color=_VALIDATION if alone else None)
            axes.plot(x[best], y[best], marker="*", markersize=13, color=line.get_color())
            if alone:
                axes.annotate(
                    f"best {y[best]:.3f}\nstep {int(x[best]):,}", (x[best], y[best]),
                    textcoords="offset points", xytext=(-6, 14), ha="right", fontsize=9,
                )  # fmt: skip
    if not axes.lines:
        raise ValueError("Nothing to plot: no step has been logged yet.")
    title = " and ".join(histories) if len(histories) < 4 else ""
    named = {VALIDATION_LOSS: "loss (nats per token)"}
    ylabel = " or ".join(dict.fromkeys(named.get(metric, metric) for metric in metrics))
    axes.set(xlabel="optimizer step", ylabel=ylabel, title=title)
    axes.grid(alpha=0.25)
    if alone:
        _draw_baselines(axes, *histories.values())
        _draw_generations(axes, *histories.values())
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, format=path.suffix.removeprefix(".") or "png")  # otherwise it adds .png to the name


def _metric(lines: Lines) -> str:
    """What the evaluations of a run measure."""
    last = next((line for line in reversed(lines) if line["event"] == "evaluation"), {})
    return str(last.get("metric", VALIDATION_LOSS))


def baselines(milestones: Sequence[float]) -> list[tuple[str, float]]:
    """Name and loss of the n-gram models up to the best one. `milestones[n]` is the n-gram model's loss."""
    if not milestones:
        return []
    best = int(np.argmin(milestones))
    return [(f"{n}-gram" if n else "chance", loss) for n, loss in enumerate(milestones[: best + 1])]


def _draw_baselines(axes: Any, lines: Lines) -> None:
    """The n-gram baselines as horizontal lines."""
    checked = next((line for line in reversed(lines) if line["event"] == "checked"), None)
    if checked is None:
        return
    low, high = axes.get_ylim()
    named = -float("inf")
    style = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8, "color": _MILESTONE}
    for name, loss in reversed(baselines(checked["milestones"])):  # from the best one up
        axes.axhline(loss, color=_MILESTONE, linestyle=":", linewidth=0.9, zorder=0)
        if loss - named > 0.035 * (high - low):  # otherwise the names would overlap
            axes.text(1.01, loss, f"{name} {loss:.2f}", **style)
            named = loss
    axes.grid(visible=False, axis="y")


def _draw_generations(axes: Any, lines: Lines) -> None:
    """Vertical lines where a new generation starts."""
    style = {"transform": axes.get_xaxis_transform(), "va": "top", "fontsize": 8, "color": _MILESTONE}
    for line in lines:
        if line["event"] == "generation":
            axes.axvline(line["step"], color=_MILESTONE, linewidth=0.9, zorder=0)
            axes.text(line["step"], 0.98, f" generation {line['generation']}", **style)


def smooth(values: np.ndarray[Any, np.dtype[np.float64]], windows: int = 50) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The mean over a centred window of a fiftieth of the curve. It narrows at the start, where the loss falls fast."""
    half = max(1, len(values) // (2 * windows))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    left = np.minimum(half, i)
    right = np.minimum(left, len(values) - 1 - i)
    return (sums[i + right + 1] - sums[i - left]) / (left + right + 1)
