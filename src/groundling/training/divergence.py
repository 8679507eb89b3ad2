"""Losses, gradients and weights that are not finite, and loss spikes: skip the step, or roll back.

A step with a bad loss or gradient is skipped: weights and optimizer do not change, and the next step uses the next
batch. After three bad steps in a row, or if a weight or optimizer state is not finite, training rolls back to the last
good checkpoint (or to the start) and continues at half the learning rate, without the batches of those three steps.
PaLM was trained past its loss spikes in this way (Chowdhery et al., 2022, section 5.1). After three rollbacks, training
ends with an error that says why.

The guard is part of the `TrainState`, so a run that was stopped and resumed makes the same decisions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from groundling.config import TrainingSettings
from groundling.machine import Machine
from groundling.parallel.shards import local

_REMEMBERED = 64  # losses, whose median counts as usual
_FEWEST = 16  # losses are needed before one can be a spike
_SPIKE = 5  # times the usual loss, and ...
_ABOVE_CHANCE = 3  # times the loss of guessing; healthy runs stay far below, see docs/diagnosis.md
_BAD_STEPS = 3  # in a row
MAX_ROLLBACKS = 3
_SLOWER = 0.5  # of the learning rate, at each rollback


class Anomaly(Exception):
    """Training cannot continue from here: `cause` says what was wrong after `step` steps. The examples of the `blamed`
    steps, each given as the number of steps before it, will be left out."""

    def __init__(self, step: int, cause: str, blamed: Sequence[int] = ()) -> None:
        super().__init__(cause)
        self.step, self.cause, self.blamed = step, cause, blamed


class DivergedError(FloatingPointError):
    """Training failed at `step` because of `cause`, even after rollbacks."""

    def __init__(self, anomaly: Anomaly, settings: TrainingSettings, machine: Machine) -> None:
        helps = [f"--learning-rate {settings.learning_rate / 10:.1g}"]
        if settings.optimizer == "muon":
            helps[0] += f" and --matrix-learning-rate {settings.matrix_learning_rate / 10:.1g}"
        if not settings.grad_clip:
            helps.append("--grad-clip 1")
        if machine.dtype == torch.float16:
            helps.append("--dtype float32")
        super().__init__(
            f"Training diverged at step {anomaly.step}: {anomaly.cause}, after {MAX_ROLLBACKS} rollbacks that each "
            "halved the learning rate. It is probably still too high: start a new run with "
            f"{', '.join(helps)} or a longer --warmup-steps. Your checkpoints are safe."
        )
        self.step, self.cause = anomaly.step, anomaly.cause


@dataclass
class DivergenceGuard:
    """Judges each step. Its fields are part of the training state."""

    last_good_step: int = 0  # the last scheduled checkpoint: a rollback goes there
    recent_losses: list[float] = field(default_factory=list)
    bad_steps: list[int] = field(default_factory=list)  # skipped in a row, up to now
    rollbacks: int = 0
    lr_scale: float = 1.0  # share of the learning rate after the rollbacks
    skipped_steps: list[int] = field(default_factory=list)  # their batches are not trained on

    def find_anomaly(self, loss: float, norm: float, chance: float | None) -> str:
        """What is wrong with a step's loss or gradient norm, in words. Empty if nothing is wrong.

        A loss is a spike if it is above five times the median of the last 64 and above three times the loss of
        guessing, `chance`. The second condition lets rare text pass: on a model that has memorized the rest, its loss
        can be a thousand times the usual one, but it is less than twice the loss of guessing."""
        if not math.isfinite(loss):
            return f"loss is {_named(loss)}"
        if not math.isfinite(norm):
            return f"gradient norm is {_named(norm)}"
        if chance is not None and len(self.recent_losses) >= _FEWEST:
            usual = statistics.median(self.recent_losses)
            if loss > max(_SPIKE * usual, _ABOVE_CHANCE * chance):
                times = f", {loss / usual:.0f} times the usual {usual:.3g}" if usual > 0 else ""
                return f"loss is {loss:.3g}{times}"
        return ""

    def note_good(self, loss: float) -> None:
        """Record the loss of a good step."""
        self.recent_losses = [*self.recent_losses[1 - _REMEMBERED :], loss]
        self.bad_steps = []

    def note_bad(self, step: int, cause: str) -> None:
        """Record a skipped step, after `step` others. Raises Anomaly at the third in a row."""
        self.bad_steps = [*self.bad_steps, step]
        if len(self.bad_steps) >= _BAD_STEPS:
            raise Anomaly(step + 1, f"{cause}, as in the {_BAD_STEPS - 1} steps before", self.bad_steps)

    def new_stage(self) -> None:
        """Forget the losses of the model before."""
        self.recent_losses, self.bad_steps = [], []

    def roll_back(self, before: DivergenceGuard, anomaly: Anomaly) -> None:
        """Update this guard, which was loaded from a checkpoint, for a rollback. `before` is the guard until now."""
        self.rollbacks, self.lr_scale = before.rollbacks + 1, _SLOWER * before.lr_scale
        self.skipped_steps = sorted({*before.skipped_steps, *anomaly.blamed})


def not_finite(optimizer: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str:
    """Which optimizer state or weight is not finite, in words. Empty if all are. Of shards, the part here counts."""
    # The optimizer first, since the weights come from it.
    for key, tensor in optimizer.items():
        if not local(tensor).isfinite().all():
            name, _, quantity = key.rpartition("/")
            return f"the optimizer's {quantity} of {name} is not finite"
    for name, tensor in weights.items():
        if not local(tensor).isfinite().all():
            return f"the weights {name} are not finite"
    return ""


def _named(number: float) -> str:
    return "NaN" if math.isnan(number) else "infinite"
