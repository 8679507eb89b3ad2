"""The charts of a run: its loss or score, learning rate and speed, what samples copied, and the figures of its task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from groundling.analysis.history import History, Series
from groundling.analysis.memorization import COPIED
from groundling.evaluation.positions import PositionLoss
from groundling.reporting.charts import Chart, Curve, Line, drawn
from groundling.reporting.plot import Lines, baselines, smooth
from groundling.training.events import LOSS_ON

Point = tuple[float, float]
_WINDOWS = 15  # of a curve, to smooth: rewards vary more from step to step than losses


@dataclass(frozen=True)
class _Group:
    """Figures that belong on one chart: the figure's name, the curve's name and its look."""

    key: str
    title: str
    unit: str
    figures: Sequence[tuple[str, str, str]]
    show: Callable[[float], str] = "{:.3g}".format
    low: float | None = None
    high: float | None = None


def _percent(value: float) -> str:
    return f"{value:.3g}%"


_SHARE: dict[str, Any] = {"show": _percent, "low": 0.0, "high": 100.0}
_PAIR = ("chosen", "rejected")
_GROUPS = (
    _Group("accuracy", "Pairs ranked right", "", [("accuracy", "", "")], **_SHARE),
    _Group("margin", "Margin of the chosen", "reward", [("margin", "", "")]),
    _Group("logprob", "Log-probability", "nats per reply", [(f"{x}_logprob", x, x) for x in _PAIR]),
    _Group("rewards", "Rewards", "", [(f"{x}_reward", x, x) for x in _PAIR]),
    _Group("token_accuracy", "Token accuracy", "",
           [("token_accuracy", "", "")], **_SHARE),
    _Group("signal", "Groups with a signal", "", [("signal", "", "")], **_SHARE),
    _Group("entropy", "Entropy", "nats per token", [("entropy", "", "")], low=0.0),
    _Group("length", "Length of replies", "tokens", [("length", "", "")], low=0.0),
    _Group("cut", "Replies cut off", "", [("cut", "", "")], show=_percent, low=0.0),
    _Group("kl", "KL from the parent", "nats per token", [("kl", "", "")]),
    _Group("tool_calls", "Tool calls", "per reply", [("tool_calls", "", "")], low=0.0),
)  # fmt: skip
_TEXTS = _Group("texts", "Loss by text", "nats per token", ())  # of a mix: its figures are named after them
FIGURE_CHARTS = (_TEXTS.key, *(group.key for group in _GROUPS))
"""Their keys, in the order in which they are shown."""


def score_charts(history: History, best: Point | None, generations: Sequence[str]) -> list[Chart]:
    """The main chart of a run: `loss`, or `score` for what should rise. Then the loss is a small one, `small_loss`."""
    if not history.metric or history.metric.endswith("loss"):
        return [_loss(history, best, generations)]
    loss = Curve("loss", "plain", history.steps, smooth(history.losses))
    name, unit = ("Policy loss", "no measure of progress") if history.task == "grpo" else ("Loss", "nats per token")
    return [
        _score(history, best),
        Chart("small_loss", name, unit, [loss], f"{name} over steps.", "{:.3g}".format),
    ]


def _score(history: History, best: Point | None) -> Chart:
    """The reward of training, and the score of the evaluations."""
    is_share = history.metric == "accuracy"
    curves, factor = list[Curve](), 100.0 if is_share else 1.0
    if (reward := history.figures.get("reward")) is not None:
        name = "right in training" if is_share else "reward in training"
        curves += _curves(reward, factor, name, "training", raw=True)
    curves += _curves(history.scored[history.metric], factor, f"validation {history.metric}", "validation")
    said = f"Reward in training and {history.metric} on unseen prompts, over steps."
    show: Callable[[float], str] = _percent if is_share else "{:.4g}".format
    limits: dict[str, Any] = {"low": 0.0} if is_share else {}
    return Chart(
        "score", "Right answers" if is_share else "Reward", "", curves, said, show,
        best=(best[0], factor * best[1]) if best else None, **limits,
    )  # fmt: skip


def _loss(history: History, best: Point | None, generations: Sequence[str]) -> Chart:
    finite, metric = np.isfinite(history.losses), history.metric
    steps, losses = history.steps[finite], history.losses[finite]
    score = history.scored[metric] if metric else Series(history.evaluated, history.validation)
    known = [*score.values, *history.milestones[:1], *losses[:1]]
    said = "Training and validation loss over steps."
    if best:
        said += f" Best validation loss {best[1]:.4f} at step {best[0]:,}."
    return Chart(
        "loss", (metric or "loss").capitalize(), "" if metric else "nats per token",
        [
            Curve("each step", "raw", steps, losses),
            Curve("training", "training", steps, smooth(losses)),
            Curve("validation", "validation", score.steps, score.values),
        ],
        " ".join([said, *generations]), "{:.4g}".format,
        [Line(loss, f"{name} {loss:.2f}") for name, loss in baselines(history.milestones)],
        best,
        # The spike of a run that diverged would flatten everything else.
        high=min(max(known + losses.tolist()), 2 * max(known)) if known else None,
    )  # fmt: skip


def figure_charts(history: History) -> list[Chart]:
    """The figures of the run's task, of training and of the evaluations."""
    charts, texts = list[Chart](), [name for name in history.scored if name.startswith(LOSS_ON)]
    looks = ("chosen", "rejected", "plain", "validation")  # colors that differ
    by_text = [(name, name.removeprefix(LOSS_ON), looks[i % len(looks)]) for i, name in enumerate(texts)]
    for group in (dataclasses.replace(_TEXTS, figures=by_text), *_GROUPS):
        factor, curves = 100.0 if group.show is _percent else 1.0, list[Curve]()
        for name, curve, look in group.figures:
            if name == history.metric:
                continue  # on the main chart
            trained, scored = history.figures.get(name), history.scored.get(name)
            if curve:  # two of a kind: one line for each
                series = scored or trained
                curves += _curves(series, factor, curve, look) if series else []
                continue
            curves += _curves(trained, factor, "training", "training", raw=True) if trained else []
            curves += _curves(scored, factor, "validation", "validation") if scored else []
        if curves:
            said = f"{group.title} over steps."
            charts.append(
                Chart(group.key, group.title, group.unit, curves, said, group.show, low=group.low, high=group.high)
            )
    return charts


def _curves(series: Series, factor: float, name: str, look: str, raw: bool = False) -> list[Curve]:
    """One curve, or with `raw` also a smooth one on top of it."""
    values = factor * series.values
    if not raw:
        return [Curve(name, look, series.steps, values)]
    return [Curve("each step", "raw", series.steps, values), Curve(name, look, series.steps, smooth(values, _WINDOWS))]


def rate_chart(history: History, is_muon: bool) -> Chart:
    curve = Curve("learning rate", "plain", history.steps, history.rates)
    said = f"Learning rate over steps, at most {history.peak_rate:.2g}."
    return Chart("rate", "Learning rate", "of AdamW" if is_muon else "", [curve], said, "{:.3g}".format, low=0.0)


def position_chart(step: int, losses: Sequence[PositionLoss]) -> dict[str, Any] | None:
    """The loss by how many tokens came before, as it is drawn. The axis is logarithmic."""
    curve = Curve("", "validation", [math.log2(each.last) for each in losses], [each.loss for each in losses])
    said = f"Validation loss by the number of tokens before, at step {step:,}."
    chart = Chart(
        "positions", "Loss by position", f"nats, by tokens before, at step {step:,}", [curve], said, "{:.3f}".format
    )
    last = math.log2(losses[-1].last) if losses else 0.0
    if not last or (shown := drawn(chart, last)) is None:
        return None
    ticks = range(0, int(last) + 1, 2)
    across = [{"left": round(100 * tick / last, 2), "label": f"{2**tick:,}"} for tick in ticks]
    return shown | {"across": across, "readings": []}  # it has no steps to look up


def speed_chart(steps: Lines) -> Chart:
    curve = Curve("speed", "plain", [line["step"] for line in steps], [line["tokens_per_second"] for line in steps])
    return Chart(
        "speed", "Speed", "tokens per second", [curve], "Tokens per second over steps.", "{:,.0f}".format, low=0.0
    )


def copy_charts(copies: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """What samples copied from the training text."""
    known = [copy for copy in copies if copy["share"] is not None]
    steps = [copy["step"] for copy in known]
    shares, longest = [100 * copy["share"] for copy in known], [copy["longest"] for copy in known]
    return [
        Chart(
            "copied", "Copied", "% of a sample", [Curve("copied", "validation", steps, shares)],
            "Copied share of each sample over steps.", "{:.3g}".format, low=0.0, high=max([5.0, *shares]),
        ),
        Chart(
            "longest", "Longest copied span", "characters", [Curve("longest", "validation", steps, longest)],
            "Length of the longest copied span over steps.", "{:,.0f}".format,
            [Line(COPIED, f"{COPIED}: copied")], low=0.0, high=max([COPIED + 5, *longest]),
        ),
    ]  # fmt: skip
