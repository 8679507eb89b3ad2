"""The interface of a training task: batches, loss, evaluation and samples.

The trainer (training/trainer.py) owns the weights, the optimizer and the training state. A task owns the rest, so a new
training recipe is a new task in `tasks/`, without a change to the trainer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from groundling.data.batches import Batch
from groundling.data.tokenizers.base import Tokenizer
from groundling.machine import Machine
from groundling.model.compiled import Forward
from groundling.model.describe import Shape
from groundling.model.gpt import GPT
from groundling.model.packing import PackedRows
from groundling.parallel.mesh import Mesh
from groundling.training.events import VALIDATION_LOSS, Checked, Event


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch: `value`, a scalar, is the mean over the batch's weight, in nats for a cross-entropy.

    `figures` are other scalars to log, such as an accuracy. They are averaged like the loss.
    """

    value: torch.Tensor
    figures: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """The result of an evaluation. The best checkpoint is the one with the best `value`. `figures` are logged too.

    The default `name` is for a loss in nats per token, which is compared with the task's baselines and diagnosed.
    """

    value: float
    name: str = VALIDATION_LOSS
    lower_is_better: bool = True
    bits_per_byte: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def beats(self, best: float | None) -> bool:
        """Whether it is better than `best`, the best value so far."""
        return best is None or (self.value < best if self.lower_is_better else self.value > best)


class TrainingData(Protocol):
    """What a run knows of its text or examples, whatever the task makes of them."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def n_documents(self) -> int: ...
    @property
    def n_characters(self) -> int: ...
    @property
    def token_counts(self) -> tuple[int, int]:
        """Tokens of the training and of the validation part."""

    @property
    def n_train(self) -> int:
        """Examples, pairs or prompts of an epoch. 0: unlimited, or not counted."""


class Task(ABC):
    """Everything a training run needs besides weights, optimizer and clock.

    All methods must be pure functions of the settings, the weights and the step, so that a run that was killed repeats
    bit for bit. Other state, such as a teacher's weights, goes into `state_dict` and is saved with each checkpoint.
    """

    chance: float | None = None
    """The loss of guessing, in nats. Much higher losses are spikes. None: the loss is not judged by its height."""
    stages: Sequence[float] = (1.0,)
    """The ends of the run's stages, as shares of the run. Each stage has a whole learning-rate schedule and a new
    optimizer."""

    mesh: Mesh = Mesh.single()
    """The processes that train together. The trainer sets it. `evaluate` divides its work among them."""
    stopped: Callable[[], bool] = staticmethod(lambda: False)
    """Whether the user asked to stop. The trainer sets it. Long work in `batch` then raises Interrupted."""

    @abstractmethod
    def batch(self, step: int, model: GPT) -> Batch:
        """All examples of the optimizer step that follows `step` others. The trainer splits them into micro-batches.

        `model` has the weights before the step, for tasks whose examples it writes itself. If all weights of the batch
        are 0, there is nothing to learn, and no optimizer step is made."""

    def weight(self, batch: Batch) -> float:
        """What a micro-batch counts in the step's mean. Default: the sum of its weights, so that each target counts
        the same. `loss` gives the mean over this weight."""
        return batch.weight

    @abstractmethod
    def evaluate(self, model: GPT, machine: Machine, batch_size: int, stopped: Callable[[], bool]) -> Score:
        """Score the model, `batch_size` examples at a time. Raises Interrupted once `stopped()`."""

    def loss(self, forward: Forward, batch: Batch) -> Loss:
        """The loss of a micro-batch. Default: the weighted cross-entropy of the targets, in nats. If the batch has the
        extra `documents`, these do not see each other."""
        packed = [PackedRows(batch.extras["documents"])] if "documents" in batch.extras else []
        return Loss(forward(batch.tokens, *packed, targets=batch.targets, weights=batch.weights))

    def first_look(self, model: GPT) -> str:
        """What the user should know before the first step, as a sentence. Raises ValueError if training is futile."""
        return ""

    def sample(self, model: GPT, step: int, stopped: Callable[[], bool]) -> Event | None:
        """Texts generated by the model, to watch it learn. Raises Interrupted once `stopped()`."""
        return None

    def baselines(self) -> Checked | None:
        """The losses of simple models on the same examples, for comparison."""
        return None

    def epochs(self, step: int) -> float:
        """The number of epochs after `step` steps."""
        return 0.0

    def mixed(self, steps: int) -> list[dict[str, Any]]:
        """If it mixes several texts: about each its share at the start and at the end, the tokens of both parts, and
        its epochs after `steps` steps."""
        return []

    def place(self, machine: Machine) -> None:
        """Called before the first batch, and once more if it is decided then to compile."""
        return

    def begin_stage(self, stage: int, step: int, model: GPT) -> Event:
        """Prepare stage 2, 3, ... `model` has the weights that were saved at the end of the stage before; the task may
        replace them. Returns the event to emit."""
        raise AssertionError("This task has one stage.")

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Tensors to save with a checkpoint, each named `<parameter>/<quantity>`."""
        return {}

    def state_shapes(self, stage: int) -> Mapping[str, Shape]:
        """The shapes of `state_dict()` in that stage."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], model: GPT) -> None:
        """The inverse of `state_dict`. Without tensors, reset to the start."""
        return
