"""All tensors of a training run: weights, optimizer state, weight average, and the task's own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from groundling.config import TrainingSettings
from groundling.data.batches import Batch
from groundling.machine import Machine
from groundling.model.compiled import Forward
from groundling.model.initial import InitialModel
from groundling.model.weights_file import load_weights, read_shapes, read_tensors
from groundling.training.average import WeightAverage
from groundling.training.checkpoints import Snapshot, size_in_bytes
from groundling.training.divergence import check_finite
from groundling.training.events import Event
from groundling.training.optimizer import new_optimizer
from groundling.training.out_of_memory import HalfDoneError, raised_as
from groundling.training.state import TrainState, read_state
from groundling.training.task import Task


class Learner:
    """Computes gradients, applies them, and saves and loads all tensors together.

    `forward` is the model or its compiled form. Evaluation and sampling use `model`, since each of their shapes would
    be compiled again."""

    def __init__(self, initial: InitialModel, task: Task, settings: TrainingSettings, machine: Machine) -> None:
        self.initial, self.task = initial, task
        self.model = initial.build().to(machine.device)
        self.forward: Forward = self.model
        self.optimizer = new_optimizer(self.model, settings, machine.dtype)
        self.average = WeightAverage(self.model, settings.weight_average)
        self.grad_clip = settings.grad_clip or math.inf

    def gradients(
        self, batches: Iterable[tuple[Batch, float]], n: int, machine: Machine, scale: float = 1.0
    ) -> dict[str, torch.Tensor]:
        """Compute and clip the gradients of `n` micro-batches, each given with its share of the loss.

        `scale` multiplies the loss before the backward pass and divides the gradients after it. Returns scalars on the
        device: `loss`, the mean, `grad_norm` before clipping, and the means of the task's own figures.
        """
        self.model.train()
        sums: dict[str, torch.Tensor] = {}
        for batch, share in batches:
            with machine.autocast():
                loss = self.task.loss(self.forward, batch.to(machine.device))
            (loss.value * (scale / n * share)).backward()
            for name, value in {"loss": loss.value, **loss.figures}.items():
                sums[name] = sums.get(name, torch.zeros((), device=machine.device)) + value.detach() * share
        if scale != 1.0:
            torch._foreach_div_([p.grad for p in self.model.parameters() if p.grad is not None], scale)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        return {"loss": sums.pop("loss") / n, "grad_norm": norm} | {name: value / n for name, value in sums.items()}

    def apply(self, before: int, found_inf: torch.Tensor | None = None) -> None:
        """Make an optimizer step, which follows `before` others in this stage.

        If `found_inf`, a scalar on the device, is 1, nothing changes. Raises HalfDoneError if memory runs out.
        """
        with raised_as(HalfDoneError()):
            self.optimizer.step(found_inf)
            self.average.update(before, None if found_inf is None else 1 - found_inf)

    def zero_grad(self) -> None:
        self.model.zero_grad()

    def next_stage(self, stage: int, step: int) -> Event:
        """Start a stage with a new optimizer, on the weights that would be saved or on others that the task sets."""
        self.average.finish()
        self.optimizer.forget()
        return self.task.begin_stage(stage, step, self.model)

    def reset(self) -> None:
        """Reset to the initial weights."""
        self.optimizer.forget()
        self.average.forget()
        self.model.load_state_dict(self.initial.build().state_dict())
        self.task.load_state_dict({}, self.model)

    def check_finite(self, step: int) -> None:
        """Raise Anomaly if a weight or optimizer state is not finite."""
        check_finite(step, self.optimizer.state_dict(), self.model.state_dict())

    def snapshot(self, state: TrainState) -> Snapshot:
        training = {**self.optimizer.state_dict(), **self.average.state_dict(), **self.task.state_dict()}
        return Snapshot(state, self.average.weights(), training)

    def load(self, checkpoint: Path) -> TrainState:
        """Load a checkpoint and return its state. Raises ValueError if something does not fit or is not finite."""
        load_weights(checkpoint, self.model)
        state, file = read_state(checkpoint), checkpoint / "optimizer.safetensors"
        task = self.task.state_shapes(state.stage)
        optimizer, average = self.optimizer.state_shapes(), self.average.state_shapes()
        if not read_shapes(file).keys() - task.keys():  # before the first step of a stage, there are none
            optimizer, average = {}, {}
        tensors = read_tensors(file, {**task, **optimizer, **average})
        self.optimizer.load_state_dict({name: tensors[name] for name in optimizer})
        self.average.load_state_dict({name: tensors[name] for name in average})
        self.task.load_state_dict({name: tensors[name] for name in task}, self.model)
        return state

    @property
    def checkpoint_size(self) -> int:
        """Size in bytes of the largest checkpoint of this run."""
        weights = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        task = self.task.state_shapes(len(self.task.stages))
        return size_in_bytes(weights, self.optimizer.state_shapes(), self.average.state_shapes(), task)
