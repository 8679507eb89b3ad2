"""What a training run learns: a `Task` brings the examples, the loss, the evaluation and the samples.

The trainer (training/trainer.py) owns the weights and everything that changes while it runs. A task owns the rest, so a
new recipe is a new task in `tasks/`, and the trainer stays as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from groundling.data.batches import Batch
from groundling.machine import Machine
from groundling.model.compiled import Forward
from groundling.model.describe import Shape
from groundling.model.gpt import GPT
from groundling.training.events import VALIDATION_LOSS, Checked, Event, Sample


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch: `value`, a scalar, is the mean over the batch's weight, in nats for a cross-entropy.

    `figures` are further scalars to log, such as an accuracy. Each is averaged like the loss.
    """

    value: torch.Tensor
    figures: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What an evaluation found. The best checkpoint is the one with the best `value`. `figures` are logged too.

    The default `name` is for a loss in nats per token, which is compared with the task's baselines and diagnosed.
    """

    value: float
    name: str = VALIDATION_LOSS
    lower_is_better: bool = True
    bits_per_byte: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def beats(self, best: float | None) -> bool:
        """Whether it is better than the best value so far."""
        return best is None or (self.value < best if self.lower_is_better else self.value > best)


class Task(ABC):
    """Everything that a training run needs beside weights, optimizer and clock.

    All of it must be a pure function of the settings, the weights and the step. Then a run that was killed repeats to
    the bit. What cannot be, such as a teacher's weights, is named in `state_dict` and saved with each checkpoint.
    """

    chance: float | None = None
    """The loss of guessing, in nats. Much higher losses are spikes. None: the loss is not judged by its height."""
    stages: Sequence[float] = (1.0,)
    """Where the stages of the run end, as shares of it. Each has the whole learning-rate schedule and a new
    optimizer."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """All examples of the optimizer step after `step` steps. The trainer splits them into micro-batches."""

    @abstractmethod
    def evaluate(self, model: GPT, machine: Machine, batch_size: int, stopped: Callable[[], bool]) -> Score:
        """Score the model, `batch_size` examples at a time. Raises Interrupted once `stopped()`."""

    def loss(self, forward: Forward, batch: Batch) -> Loss:
        """Default: the cross-entropy of the targets, weighted, in nats."""
        logits, targets = forward(batch.tokens).float().flatten(0, 1), batch.targets.flatten()
        if batch.weights is None:
            return Loss(F.cross_entropy(logits, targets))
        weights = batch.weights.flatten()
        losses = F.cross_entropy(logits, targets, reduction="none") * weights
        return Loss(losses.sum() / weights.sum().clamp(min=1e-9))

    def sample(self, model: GPT, step: int, stopped: Callable[[], bool]) -> Sample | None:
        """Something that the model wrote, to watch it learn. Raises Interrupted once `stopped()`."""
        return None

    def baselines(self) -> Checked | None:
        """What simple models of the same examples reach, to judge the loss by."""
        return None

    def epochs(self, step: int) -> float:
        """How many times the examples were read after `step` steps."""
        return 0.0

    def place(self, machine: Machine) -> None:
        """Called once before training with the machine, whose compiler is on or off by then."""
        return

    def begin_stage(self, stage: int, step: int, model: GPT) -> Event:
        """Prepare the stage after the first, second, ...: `model` has the weights that the stage before would be saved
        with, and may get others. Returns the event that tells of it."""
        raise AssertionError("This task has one stage.")

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Tensors to save with a checkpoint, each named `<parameter>/<quantity>`."""
        return {}

    def state_shapes(self, stage: int) -> Mapping[str, Shape]:
        """The shapes of `state_dict()` in that stage."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], model: GPT) -> None:
        """The inverse of `state_dict`. Without tensors, the task is as it began."""
        return
