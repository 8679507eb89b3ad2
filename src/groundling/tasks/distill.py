"""Distillation: a student learns the probabilities of a teacher, on a text, on conversations, or on replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from groundling.config import Config
from groundling.data.batches import Batch
from groundling.data.corpus import Corpus
from groundling.data.examples import Dataset
from groundling.machine import Machine
from groundling.model.compiled import Forward
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.tasks.losses.divergence import divergence
from groundling.tasks.pretraining import Pretraining
from groundling.tasks.prompts import TaskPrompts
from groundling.tasks.replies import batch_of, figures_of, sample_groups
from groundling.tasks.sft import Sft
from groundling.training.events import Checked, Event
from groundling.training.task import Loss, Score, Task


class _Written(Task):
    """Replies to the prompts of a task, without rewards."""

    def __init__(self, prompts: TaskPrompts, config: Config) -> None:
        self.prompts, self.seed, self.block_size = prompts, config.training.seed, config.model.block_size
        self.size = config.training.batch_size * config.training.accumulate
        self.machine: Machine | None = None

    def place(self, machine: Machine) -> None:
        self.machine = machine

    def batch(self, step: int, model: GPT) -> Batch:
        indices = range(step * self.size, (step + 1) * self.size)
        groups = sample_groups(
            model, self.prompts, "train", indices, 1, [self.seed, step], 1.0, self.machine, self.stopped
        )
        batch, figures = batch_of(groups, self.block_size), figures_of(groups, self.prompts.max_completion_length)
        del figures["signal"]
        return Batch(batch.tokens, batch.targets, batch.weights, figures=figures)

    def evaluate(self, model: GPT, machine: Machine, batch_size: int, stopped: Callable[[], bool]) -> Score:
        """The share of right answers to the validation part, among the most likely ones."""
        indices = range(self.prompts.n_validation)
        groups = sample_groups(model, self.prompts, "validation", indices, 1, [self.seed, 1], 0.0, machine, stopped)
        figures = figures_of(groups, self.prompts.max_completion_length)
        del figures["signal"]
        return Score(figures.pop("reward"), "accuracy", lower_is_better=False, figures=figures)


class Distill(Task):
    """The batches, evaluation and samples are those of the task that the data are for. The loss compares the student's
    predictions with the teacher's. `on_policy` is the share of steps whose replies the student writes; in the others,
    the teacher writes them, or they are in the data."""

    def __init__(self, data: Any, config: Config, initial: InitialModel, others: Mapping[str, InitialModel]) -> None:
        self.method, self.seed = config.method, config.training.seed
        self.inner: Task
        if isinstance(data, TaskPrompts):
            self.inner = _Written(data, config)
        elif isinstance(data, Dataset):
            self.inner = Sft(data, config, initial, {})
        else:
            assert isinstance(data, Corpus)
            self.inner = Pretraining(data, config, initial)
        if self.method.on_policy and not isinstance(data, TaskPrompts):
            raise ValueError("--on-policy needs the prompts of a --task.")
        self.chance = None
        self.teacher = others["teacher"]
        self._teacher: GPT | None = None

    def place(self, machine: Machine) -> None:
        self.inner.place(machine)
        self._teacher = self.teacher.build().to(machine.device).requires_grad_(False).eval()

    def batch(self, step: int, model: GPT) -> Batch:
        assert self._teacher is not None
        own = np.random.default_rng([self.seed, step]).random() < self.method.on_policy
        self.inner.stopped = self.stopped
        return self.inner.batch(step, model if own else self._teacher)

    def loss(self, forward: Forward, batch: Batch) -> Loss:
        assert self._teacher is not None
        with torch.no_grad():
            expected = self._teacher(batch.tokens)
        losses = divergence(forward(batch.tokens), expected, self.method)
        if batch.weights is None:
            return Loss(losses.mean())
        return Loss((losses * batch.weights).sum() / batch.weights.sum().clamp(min=1e-9))

    def evaluate(self, model: GPT, machine: Machine, batch_size: int, stopped: Callable[[], bool]) -> Score:
        return self.inner.evaluate(model, machine, batch_size, stopped)

    def sample(self, model: GPT, step: int, stopped: Callable[[], bool]) -> Event | None:
        return self.inner.sample(model, step, stopped)

    def baselines(self) -> Checked | None:
        return self.inner.baselines()

    def epochs(self, step: int) -> float:
        return self.inner.epochs(step)
