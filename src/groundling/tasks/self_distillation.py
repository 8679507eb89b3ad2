"""Self-distillation: each generation is a new model that learns from the text and from the previous generation.

A text shows only one of several possible next tokens, and after many epochs the model memorizes it. A teacher's
probabilities cover all of them and are harder to overfit (Furlanello et al., "Born-Again Neural Networks", 2018).
docs/LOG.md says how much it gains.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from groundling.config import Config
from groundling.data.batches import Batch
from groundling.data.mixture import Text
from groundling.machine import Machine
from groundling.model.compiled import Forward, compiled_forward
from groundling.model.describe import Shape, weight_shapes
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.tasks.pretraining import Pretraining
from groundling.training.events import Event, Generation
from groundling.training.task import Loss

_TEACHER = "/teacher"
_SHARE = 0.5  # of the teacher's term in the loss; 0.8 was no better


def end_of(generation: int, generations: int) -> float:
    """The share of a run, in (0, 1], after which the first `generation` of its `generations` are over.

    The second is twice as long as the first, the third three times: with a teacher, a model can train longer before it
    memorizes the text.
    """
    return min(1.0, generation * (generation + 1) / (generations * (generations + 1)))


class SelfDistillation(Pretraining):
    """Pretraining in generations: each is a new model, with the previous one as its teacher."""

    def __init__(self, text: Text, config: Config, initial: InitialModel) -> None:
        super().__init__(text, config, initial)
        n = config.training.generations
        self.stages = [end_of(generation, n) for generation in range(1, n + 1)]
        self.initial = initial
        self._compiled_for: Machine | None = None
        self._teacher: GPT | None = None
        self._predict: Forward | None = None

    def place(self, machine: Machine) -> None:
        super().place(machine)
        self._compiled_for = machine if machine.compile == "on" else None
        self._teach(self._teacher)

    def _teach(self, teacher: GPT | None) -> None:
        self._teacher = self._predict = teacher
        if teacher is not None and self._compiled_for is not None:
            self._predict = compiled_forward(teacher, self._compiled_for, graphs=False)

    def begin_stage(self, stage: int, step: int, model: GPT) -> Event:
        self._teach(_frozen_copy(model))
        model.load_state_dict(self.initial.build(stage).state_dict())
        return Generation(step, stage)

    def loss(self, forward: Forward, batch: Batch) -> Loss:
        """The value is the next-token loss, so that curves are comparable with and without a teacher. The gradient is
        half that of the next-token loss and half that of the cross-entropy with the teacher's probabilities."""
        if self._predict is None:
            return super().loss(forward, batch)
        with torch.no_grad():
            expected = self._predict(batch.tokens).float().flatten(0, 1).softmax(1)  # (B * T, V)
        logits = forward(batch.tokens).float().flatten(0, 1)
        loss = F.cross_entropy(logits, batch.targets.flatten())
        mixture = torch.lerp(loss, F.cross_entropy(logits, expected), _SHARE)
        return Loss(loss.detach() + (mixture - mixture.detach()))

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        if self._teacher is None:
            return {}
        return {name + _TEACHER: p.detach() for name, p in self._teacher.named_parameters()}

    def state_shapes(self, stage: int) -> Mapping[str, Shape]:
        shapes = weight_shapes(self.initial.config, self.initial.vocab_size)
        return {name + _TEACHER: shape for name, shape in shapes.items()} if stage > 1 else {}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], model: GPT) -> None:
        teacher = _frozen_copy(model) if tensors else None
        if teacher is not None:
            teacher.load_state_dict({name.removesuffix(_TEACHER): value for name, value in tensors.items()})
        self._teach(teacher)


def _frozen_copy(model: GPT) -> GPT:
    return copy.deepcopy(model).requires_grad_(False).eval()
