"""The figures of a run as its files tell them: what diagnosis, curves and reports read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling.config import Config

_F64 = npt.NDArray[np.float64]
_I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class History:
    """Curves and facts. `steps`, `losses` and `rates` have an entry a logged step; `evaluated`, `validation` and
    `training` one an evaluation. Losses are in nats a token.
    """

    steps: _I64
    losses: _F64
    rates: _F64
    evaluated: _I64
    validation: _F64
    training: Sequence[float | None]
    """The mean training loss since the evaluation before."""
    tokens_per_step: int
    training_tokens: int
    validation_tokens: int
    parameters: int
    width: int
    milestones: Sequence[float] = field(default=())
    """What n-gram models reach on the validation part: see analysis/ngrams.py."""
    one_gram: float = 0.0
    """What knowing how common each token is reaches on the training part."""
    leakage: float | None = None
    """The share of the validation part that stands in the training part too; None if that was not looked at."""
    sees_future: bool = False
    """Whether its model was found to do so: see evaluation/causality.py."""
    diverged: int | None = None
    """The step beyond which it did not come."""
    diverged_by: str = ""
    """What was wrong there."""
    rolled_back: Sequence[Mapping[str, Any]] = field(default=())
    """Where it went back, and why: the events `RolledBack`."""

    @staticmethod
    def read(
        lines: Sequence[Mapping[str, Any]], config: Config, sees_future: bool = False, whole: bool = False
    ) -> History:
        """From the lines of `metrics.jsonl`. Of several generations the curves are the last one's, or the `whole`
        run's."""
        births = [line["step"] for line in lines if line["event"] == "generation" and not whole]
        born = max(births, default=-1)
        steps = [line for line in lines if line["event"] == "step" and line["step"] > born]
        points = [line for line in lines if line["event"] == "evaluation" and line["step"] > born]
        points = [line for line in points if "metric" not in line]  # the others are not losses
        started = next((line for line in lines if line["event"] == "started"), None)
        checked: Mapping[str, Any] = next((line for line in reversed(lines) if line["event"] == "checked"), {})
        diverged: Mapping[str, Any] = next((line for line in reversed(lines) if line["event"] == "diverged"), {})
        corpus = started["corpus"] if started else {}
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
            parameters=sum(count for _, count in started["parameters"]) if started else 0,
            width=config.model.n_embd,
            milestones=checked.get("milestones", ()),
            one_gram=checked.get("one_gram", 0.0),
            leakage=checked.get("leakage"),
            sees_future=sees_future,
            diverged=diverged.get("step"),
            diverged_by=diverged.get("cause", ""),
            rolled_back=[line for line in lines if line["event"] == "rolledback"],
        )

    @property
    def n_steps(self) -> int:
        """Logged steps."""
        return len(self.steps)

    @property
    def n_steps_done(self) -> int:
        return int(self.steps[-1]) if self.n_steps else 0

    @property
    def peak_rate(self) -> float:
        """AdamW's."""
        return float(self.rates.max(initial=0.0))

    @property
    def usual_rate(self) -> float:
        """What AdamW's learning rate usually is at this width: 6e-4 for GPT-2's 768, and the more the narrower."""
        return 0.5 / self.width

    @property
    def final_loss(self) -> float:
        """The training loss's mean over the last twentieth."""
        return self.mean_loss(self.n_steps - self._window, self.n_steps)

    @property
    def lowest_loss(self) -> float:
        """The least mean over a twentieth of the run."""
        if self.n_steps < self._window:
            return self.final_loss
        sums = np.cumsum(np.append(0.0, self.losses))
        return float(((sums[self._window :] - sums[: -self._window]) / self._window).min())

    @property
    def noise(self) -> float:
        """By how much a logged loss differs from those beside it: the standard deviation."""
        return float(np.diff(self.losses).std() / np.sqrt(2)) if self.n_steps > 1 else 0.0

    @property
    def _window(self) -> int:
        return max(5, self.n_steps // 20)

    def epochs(self, step: int) -> float:
        """Passes over the training part that were done at `step`."""
        return step * self.tokens_per_step / max(self.training_tokens, 1)

    def mean_loss(self, start: int, stop: int) -> float:
        """The training loss's mean over logged steps [start, stop), as far as there are any."""
        part = self.losses[max(start, 0) : max(stop, 1)]
        return float(part.mean()) if len(part) else float("nan")

    def recent_loss(self, step: int) -> float | None:
        """The training loss's mean over some steps up to `step`; None if too few were logged."""
        part = self.losses[self.steps <= step][-self._window :]
        return float(part.mean()) if len(part) == self._window else None

    def mean_loss_until_epoch(self, epoch: float) -> float | None:
        """The training loss's mean over the last steps before so many passes over the text were done."""
        return self.recent_loss(int(epoch * self.training_tokens / self.tokens_per_step))

    def rate_at(self, step: int) -> float:
        """AdamW's learning rate at the last logged step up to `step`."""
        part = self.rates[self.steps <= step]
        return float(part[-1]) if len(part) else 0.0

    def loss_before(self, step: int) -> float:
        part = self.losses[self.steps < step]
        return float(part[-1]) if len(part) else float("nan")

    def spikes(self, height: float) -> list[tuple[int, float, float]]:
        """Steps whose loss stands that far above the mean of the twenty before, and far beyond their spread, with
        that mean and the loss.

        A spike of several steps is one. The first twenty steps have none.
        """
        if self.n_steps <= 20:
            return []
        before = np.lib.stride_tricks.sliding_window_view(self.losses, 20)[:-1]
        mean, spread = before.mean(axis=1), before.std(axis=1)
        found, quiet_from = list[tuple[int, float, float]](), 0
        for i in np.flatnonzero(self.losses[20:] > mean + np.maximum(height, 6 * spread)).tolist():
            if i >= quiet_from:
                found.append((int(self.steps[20 + i]), float(mean[i]), float(self.losses[20 + i])))
                quiet_from = i + 20
        return found
