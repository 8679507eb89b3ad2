"""All tensors of a training run: weights, optimizer state, weight average, and the task's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from groundling.config import TrainingSettings
from groundling.data.batches import Batch
from groundling.machine import Machine
from groundling.model.adapter import Adapter, AdapterSpec
from groundling.model.compiled import Forward
from groundling.model.describe import Shape
from groundling.model.gpt import GPT
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

ADAPTER = "adapter/"
"""What the names of an adapter's tensors start with in a checkpoint."""


class Learner:
    """Computes gradients, applies them, and saves and loads all tensors together.

    `forward` is the model or its compiled form. Evaluation and sampling use `model`, since each of their shapes would
    be compiled again. With an `adapter`, only that is trained: `forward` computes with it, and after each step it is
    merged into `model`."""

    def __init__(
        self, initial: InitialModel, task: Task, settings: TrainingSettings, machine: Machine,
        adapter: AdapterSpec | None = None,
    ) -> None:  # fmt: skip
        self.initial, self.task = initial, task
        self.model = initial.build().to(machine.device)
        self.adapter = Adapter(self.model, adapter, initial.seed) if adapter else None
        self.trained: GPT | Adapter = self.adapter or self.model
        self.forward: Forward = self.trained
        self.optimizer = new_optimizer(self.trained, settings, machine.dtype)
        self.average = WeightAverage(self.model, 0.0 if adapter else settings.weight_average)
        self.grad_clip = settings.grad_clip or math.inf

    def gradients(
        self, batches: Iterable[tuple[Batch, float]], n: int, machine: Machine, scale: float = 1.0
    ) -> dict[str, torch.Tensor]:
        """Compute and clip the gradients of up to `n` micro-batches, each given with its share of the loss.

        `scale` multiplies the loss before the backward pass and divides the gradients after it. Returns scalars on the
        device: `loss`, the mean, `grad_norm` before clipping, and the means of the task's own figures.
        """
        self.model.train()
        sums = {"loss": torch.zeros((), device=machine.device)}
        for batch, share in batches:
            with machine.autocast():
                loss = self.task.loss(self.forward, batch.to(machine.device))
            (loss.value * (scale / n * share)).backward()
            for name, value in {"loss": loss.value, **loss.figures}.items():
                sums[name] = sums.get(name, torch.zeros((), device=machine.device)) + value.detach() * share
        if scale != 1.0:
            torch._foreach_div_([p.grad for p in self.trained.parameters() if p.grad is not None], scale)
        norm = torch.nn.utils.clip_grad_norm_(self.trained.parameters(), self.grad_clip).to(machine.device)
        return {"loss": sums.pop("loss") / n, "grad_norm": norm} | {name: value / n for name, value in sums.items()}

    def apply(self, before: int, found_inf: torch.Tensor | None = None) -> None:
        """Make an optimizer step, which follows `before` others in this stage.

        If `found_inf`, a scalar on the device, is 1, nothing changes. Raises HalfDoneError if memory runs out.
        """
        with raised_as(HalfDoneError()):
            self.optimizer.step(found_inf)
            if self.adapter:
                self.adapter.merge()
            self.average.update(before, None if found_inf is None else 1 - found_inf)

    def zero_grad(self) -> None:
        self.trained.zero_grad()

    def next_stage(self, stage: int, step: int) -> Event:
        """Start a stage with a new optimizer, on the weights that would be saved or on others that the task sets."""
        self.average.finish()
        self.optimizer.forget()
        return self.task.begin_stage(stage, step, self.model)

    def reset(self) -> None:
        """Reset to the initial weights."""
        self.optimizer.forget()
        self.average.forget()
        model = self.initial.build().to(self.model.device)
        self.model.load_state_dict(model.state_dict())
        if self.adapter:
            self.adapter.load_state_dict(Adapter(model, self.adapter.spec, self.initial.seed).state_dict())
            self.adapter.merge()
        self.task.load_state_dict({}, self.model)

    def check_finite(self, step: int) -> None:
        """Raise Anomaly if a weight or optimizer state is not finite."""
        check_finite(step, self.optimizer.state_dict(), self.model.state_dict())

    def snapshot(self, state: TrainState) -> Snapshot:
        training = {**self.optimizer.state_dict(), **self.average.state_dict(), **self.task.state_dict()}
        training |= self._adapter_tensors()
        return Snapshot(state, self.average.weights(), training)

    def load(self, checkpoint: Path) -> TrainState:
        """Load a checkpoint and return its state. Raises ValueError if something does not fit or is not finite."""
        load_weights(checkpoint, self.model)
        state, file = read_state(checkpoint), checkpoint / "optimizer.safetensors"
        task, adapter = self.task.state_shapes(state.stage), _shapes(self._adapter_tensors())
        optimizer, average = self.optimizer.state_shapes(), self.average.state_shapes()
        if not read_shapes(file).keys() - task.keys() - adapter.keys():  # before the first step of a stage
            optimizer, average = {}, {}
        tensors = read_tensors(file, {**task, **optimizer, **average, **adapter})
        self.optimizer.load_state_dict({name: tensors[name] for name in optimizer})
        self.average.load_state_dict({name: tensors[name] for name in average})
        self.task.load_state_dict({name: tensors[name] for name in task}, self.model)
        if self.adapter:
            self.adapter.load_state_dict({name.removeprefix(ADAPTER): tensors[name] for name in adapter})
            saved = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.adapter.merge()
            if not all(torch.allclose(now, saved[name], 1e-4, 1e-5) for name, now in self.model.state_dict().items()):
                raise ValueError(f"The adapter in {file} does not belong to the initial weights of this run.")
        return state

    def _adapter_tensors(self) -> dict[str, torch.Tensor]:
        return {ADAPTER + name: tensor for name, tensor in self.adapter.state_dict().items()} if self.adapter else {}

    @property
    def checkpoint_size(self) -> int:
        """Size in bytes of the largest checkpoint of this run."""
        weights, adapter = _shapes(dict(self.model.named_parameters())), _shapes(self._adapter_tensors())
        task = self.task.state_shapes(len(self.task.stages))
        return size_in_bytes(weights, adapter, self.optimizer.state_shapes(), self.average.state_shapes(), task)


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
