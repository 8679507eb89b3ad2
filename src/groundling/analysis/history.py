"""History: the curves and facts of a run from its `metrics.jsonl`, for diagnosis, charts and reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling.config import Config
from groundling.escape import command

_F64 = npt.NDArray[np.float64]
_I64 = npt.NDArray[np.int64]
_OF_LEARNED = ("entropy", "clipped", "kl", "sampling_gap", "largest_sampling_gap")


@dataclass(frozen=True)
class Series:
    """A figure over steps."""

    steps: _I64
    values: _F64

    @property
    def first(self) -> float:
        return float(self.values[0])

    @property
    def last(self) -> float:
        return float(self.values[-1])

    @property
    def start(self) -> float:
        """The mean of the first tenth, at least five values."""
        return float(self.values[: max(5, len(self.values) // 10)].mean())

    @property
    def end(self) -> float:
        """The mean of the last tenth, at least five values."""
        return float(self.values[-max(5, len(self.values) // 10) :].mean())

    @property
    def noise(self) -> float:
        """The standard deviation of a value, from the differences of neighbours."""
        return float(np.diff(self.values).std() / np.sqrt(2)) if len(self.values) > 2 else 0.0


@dataclass(frozen=True)
class History:
    """`steps`, `losses` and `rates` have one entry per logged step; `evaluated`, `validation` and `training` one per
    evaluation. Losses are in nats per token, and `rates` are AdamW's.
    """

    steps: _I64
    losses: _F64
    rates: _F64
    evaluated: _I64
    validation: _F64
    training: Sequence[float | None]  # the mean training loss since the evaluation before
    tokens_per_step: int
    training_tokens: int
    validation_tokens: int
    parameters: int
    width: int
    milestones: Sequence[float] = ()  # losses of n-gram models on the validation part: see ngrams.py
    one_gram: float = 0.0  # the loss of a 1-gram model on the training part
    leakage: float | None = None  # share of the validation part that is also in the training part; None: not checked
    sees_future: bool = False  # see evaluation/causality.py
    diverged: int | None = None  # the step that training could not get past
    diverged_by: str = ""  # the cause, in words
    rolled_back: Sequence[Mapping[str, Any]] = ()  # the `RolledBack` events
    inspect_command: str = ""  # a check-up of the same tokens
    train_command: str = ""  # a new run on the same tokens, planned to take as long as this one
    task: str = "pretraining"  # or a post-training task
    metric: str = ""  # what the evaluations measure, if not a loss in nats per token
    figures: Mapping[str, Series] = field(default_factory=dict)  # of the steps, by name
    scored: Mapping[str, Series] = field(default_factory=dict)  # of the evaluations, with the metric itself
    judged_by_model: bool = False  # rewards come from a reward model, not from a check of the answer
    epochs_per_step: float | None = None  # None: as tokens say

    @staticmethod
    def read(
        lines: Sequence[Mapping[str, Any]], config: Config, sees_future: bool = False, whole: bool = False
    ) -> History:
        """Read the lines of `metrics.jsonl`. With several generations, the curves are those of the last one, or of the
        `whole` run.
        """
        last = {line["event"]: line for line in lines}
        checked, diverged = last.get("checked", {}), last.get("diverged", {})
        started = next((line for line in lines if line["event"] == "started"), {})
        corpus = started.get("corpus", {})
        born = -1 if whole else last.get("generation", {}).get("step", -1)
        curves = [line for line in lines if line["event"] in ("step", "evaluation") and line["step"] > born]
        steps = [line for line in curves if line["event"] == "step"]
        evaluations = [line for line in curves if line["event"] == "evaluation"]
        points = [line for line in evaluations if "metric" not in line]  # other metrics are not losses
        metric = evaluations[-1].get("metric", "") if evaluations else ""
        tuned = config.method and started.get("steps")
        minutes = max(0.2, steps[-1]["elapsed"] / 60 if steps else 0.0)
        return History(
            steps=np.array([line["step"] for line in steps], dtype=np.int64),
            losses=np.array([line["loss"] for line in steps], dtype=np.float64),
            rates=np.array([line["learning_rate"] for line in steps], dtype=np.float64),
            evaluated=np.array([line["step"] for line in points], dtype=np.int64),
            validation=np.array([line["validation_loss"] for line in points], dtype=np.float64),
            training=[line["training_loss"] for line in points],
            tokens_per_step=config.tokens_per_step,
            training_tokens=corpus.get("training_tokens", 0),
            validation_tokens=corpus.get("validation_tokens", 0),
            parameters=sum(count for _, count in started.get("parameters", ())),
            width=config.model.n_embd,
            milestones=checked.get("milestones", ()),
            one_gram=checked.get("one_gram", 0.0),
            leakage=checked.get("leakage"),
            sees_future=sees_future,
            diverged=diverged.get("step"),
            diverged_by=diverged.get("cause", ""),
            rolled_back=[line for line in lines if line["event"] == "rolledback"],
            inspect_command=command("inspect", *config.text_arguments),
            train_command=command("train", *config.train_arguments, "--minutes", f"{minutes:.2g}"),
            task=config.task if config.method else "pretraining",
            metric=metric,
            figures=_series((line["step"], measured(line.get("figures", {}))) for line in steps),
            scored=_series(
                (line["step"], line.get("figures", {}) | ({metric: line["validation_loss"]} if metric else {}))
                for line in evaluations
            ),
            judged_by_model=bool(getattr(config.method, "reward", "")),
            epochs_per_step=started["epochs"] / started["steps"] if tuned else None,
        )

    @property
    def best_score(self) -> float | None:
        """The best value of the evaluations. Losses should be low, all else high."""
        values = self.scored[self.metric].values if self.metric else self.validation
        if not len(values):
            return None
        return float(values.max() if self.metric and not self.metric.endswith("loss") else values.min())

    @property
    def n_steps(self) -> int:
        """The number of logged steps."""
        return len(self.steps)

    @property
    def n_steps_done(self) -> int:
        return int(self.steps[-1]) if self.n_steps else 0

    @property
    def peak_rate(self) -> float:
        return float(self.rates.max(initial=0.0))

    @property
    def usual_rate(self) -> float:
        """AdamW's usual learning rate at this width: 6e-4 for GPT-2's 768, and higher for narrower models."""
        return 0.5 / self.width

    @property
    def final_loss(self) -> float:
        """The mean training loss over the last twentieth of the run."""
        return self.mean_loss(self.n_steps - self._window, self.n_steps)

    @property
    def lowest_loss(self) -> float:
        """The lowest mean training loss over a twentieth of the run."""
        sums = np.cumsum(np.append(0.0, self.losses))
        return float(((sums[self._window :] - sums[: -self._window]) / self._window).min())

    @property
    def noise(self) -> float:
        """The standard deviation of a logged loss, from the differences of neighbours."""
        return float(np.diff(self.losses).std() / np.sqrt(2))

    @property
    def _window(self) -> int:
        return max(5, self.n_steps // 20)

    def epochs(self, step: int) -> float:
        """How often the training part has been read at `step`."""
        if self.epochs_per_step is not None:
            return step * self.epochs_per_step
        return step * self.tokens_per_step / max(self.training_tokens, 1)

    def mean_loss(self, start: int, stop: int) -> float:
        """The mean training loss over logged steps [start, stop). NaN if there are none."""
        part = self.losses[max(start, 0) : max(stop, 1)]
        return float(part.mean()) if len(part) else float("nan")

    def recent_loss(self, step: int) -> float | None:
        """The mean training loss over some steps up to `step`. None if too few were logged."""
        part = self.losses[self.steps <= step][-self._window :]
        return float(part.mean()) if len(part) == self._window else None

    def rate_at(self, step: int) -> float:
        """The learning rate at the last logged step up to `step`."""
        part = self.rates[self.steps <= step]
        return float(part[-1]) if len(part) else 0.0

    def loss_before(self, step: int) -> float:
        part = self.losses[self.steps < step]
        return float(part[-1]) if len(part) else float("nan")

    def spikes(self, height: float) -> list[tuple[int, float, float]]:
        """Steps with a loss at least `height` above the mean of the 20 before and far outside their spread, each as
        (step, mean, loss). A spike of several steps counts once. The first 20 steps have none.
        """
        if self.n_steps <= 20:
            return []
        before = np.lib.stride_tricks.sliding_window_view(self.losses, 20)[:-1]
        mean, spread = before.mean(axis=1), before.std(axis=1)
        spikes, next_possible = list[tuple[int, float, float]](), 0
        for i in np.flatnonzero(self.losses[20:] > mean + np.maximum(height, 6 * spread)).tolist():
            if i >= next_possible:
                spikes.append((int(self.steps[20 + i]), float(mean[i]), float(self.losses[20 + i])))
                next_possible = i + 20
        return spikes


def measured(figures: Mapping[str, float]) -> Mapping[str, float]:
    """Without those that a step did not measure: where no group had a signal, no token was learned."""
    if figures.get("signal", 1.0):
        return figures
    return {name: value for name, value in figures.items() if name not in _OF_LEARNED}


def _series(figures: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, Series]:
    """By name, from the figures of each step."""
    points = defaultdict[str, list[tuple[int, float]]](list)
    for step, values in figures:
        for name, value in values.items():
            points[name].append((step, value))
    return {
        name: Series(np.array([x for x, _ in pairs], np.int64), np.array([y for _, y in pairs], np.float64))
        for name, pairs in points.items()
    }
