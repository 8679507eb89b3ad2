"""All tensors of a training run: weights, optimizer state, weight average, and the task's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from groundling.config import TrainingSettings
from groundling.data.batches import Batch
from groundling.machine import Machine
from groundling.model.adapter import Adapter, AdapterSpec
from groundling.model.compiled import Forward
from groundling.model.describe import Shape, weight_shapes
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.model.weights_file import read_shapes
from groundling.parallel.data_parallel import DataParallel
from groundling.parallel.divide import divided, new_pipeline, of_all_stages
from groundling.parallel.mesh import Mesh
from groundling.parallel.parts import copied_parts, read_parts
from groundling.parallel.processes import first
from groundling.parallel.shards import assign, gathered, row_orders
from groundling.training.average import WeightAverage
from groundling.training.checkpoints import Snapshot, size_in_bytes
from groundling.training.divergence import Anomaly, not_finite
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
        adapter: AdapterSpec | None = None, mesh: Mesh | None = None,
    ) -> None:  # fmt: skip
        self.initial, self.task = initial, task
        mesh = mesh or Mesh.single()
        model = initial.build()
        if mesh.shard == 1:  # else blocks move one by one, as they are sharded: no device needs room for all
            model = model.to(machine.device)
        self.model = divided(model, mesh)
        for block in self.model.blocks:
            block.recompute = settings.recompute
        self.adapter = Adapter(self.model, adapter, initial.seed) if adapter else None
        self.trained: GPT | Adapter = self.adapter or self.model
        self.parallel = DataParallel(self.trained, mesh)
        self.forward: Forward = self.parallel.forward
        self.optimizer = new_optimizer(self.trained, settings, machine.dtype, mesh)
        self.average = WeightAverage(self.model, 0.0 if adapter else settings.weight_average)
        self.grad_clip = settings.grad_clip or math.inf
        self.pipeline = new_pipeline(self.model, self._loss, mesh)

    def gradients(
        self, batches: Iterable[tuple[Batch, float]], n: int, machine: Machine, scale: float = 1.0
    ) -> dict[str, torch.Tensor]:
        """Compute and clip the gradients of up to `n` micro-batches, each given with its share of the loss.

        `scale` multiplies the loss before the backward pass and divides the gradients after it. Returns scalars on the
        device: `loss`, the mean, `grad_norm` before clipping, and the means of the task's own figures. With several
        processes, all of them are those of the whole batch.
        """
        self.model.train()
        sums = {"loss": torch.zeros((), device=machine.device)}
        if self.pipeline and (parts := [(batch.to(machine.device), share) for batch, share in batches]):
            with self.parallel.reducing(last=True):
                sums["loss"] += self.pipeline.backward(parts, scale / n, machine.autocast)
        for i, (batch, share) in enumerate(() if self.pipeline else batches, start=1):
            with self.parallel.reducing(last=i == n):
                with machine.autocast():
                    loss = self.task.loss(self.forward, batch.to(machine.device))
                (loss.value * (scale / n * share)).backward()
            for name, value in {"loss": loss.value, **loss.figures}.items():
                sums[name] = sums.get(name, torch.zeros((), device=machine.device)) + value.detach() * share
        if scale != 1.0:
            torch._foreach_div_([p.grad for p in self.trained.parameters() if p.grad is not None], scale)
        norm = self.parallel.clip_grad_norm_(self.grad_clip).to(machine.device)
        means = self.parallel.mean({name: value / n for name, value in sums.items()})
        return {"loss": means.pop("loss"), "grad_norm": norm} | means

    def _loss(self, forward: Forward, batch: Batch) -> torch.Tensor:
        return self.task.loss(forward, batch).value

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

    def reset(self) -> TrainState:
        """Reset to the initial weights. Returns the state there."""
        self.optimizer.forget()
        self.average.forget()
        model = self.initial.build().to(self.model.device)
        self._assign(dict(model.named_parameters()))
        if self.adapter:
            self.adapter.load_state_dict(Adapter(model, self.adapter.spec, self.initial.seed).state_dict())
            self.adapter.merge()
        self.task.load_state_dict({}, self.model)
        return TrainState()

    def check_finite(self, step: int) -> None:
        """Raise Anomaly, on all ranks, if a weight or optimizer state is not finite on any."""
        fault = first(not_finite(self.optimizer.state_dict(), dict(self.model.named_parameters())))
        if fault:
            raise Anomaly(step, fault)

    def snapshot(self, state: TrainState) -> Snapshot:
        """What this rank has to save. All ranks must call this. If each has a part of the model, it gets a copy of that
        part; otherwise rank 0 gets everything."""
        training = {**self.optimizer.state_dict(), **self.average.state_dict(), **self.task.state_dict()}
        training |= self._adapter_tensors()
        weights, orders, mesh = self.average.weights(), row_orders(self.model), self.parallel.mesh
        if not mesh.has_parts:
            return Snapshot(state, gathered(weights, orders, mesh), gathered(training, orders, mesh))
        own, others = copied_parts(weights, orders, mesh), copied_parts(training, orders, mesh)
        return Snapshot(copy.deepcopy(state), own.tensors, others.tensors, {**own.offsets, **others.offsets})

    def load(self, checkpoint: Path) -> TrainState:
        """Load a checkpoint and return its state. Raises ValueError if something does not fit or is not finite."""
        parameters, orders = dict(self.model.named_parameters()), row_orders(self.model)
        shapes = weight_shapes(self.model.config, self.model.vocab_size)
        assign(parameters, read_parts(checkpoint / "model.safetensors", shapes, parameters, orders), orders)
        state, file = read_state(checkpoint), checkpoint / "optimizer.safetensors"
        task, adapter = self.task.state_shapes(state.stage), _shapes(self._adapter_tensors())
        optimizer, average = self.optimizer.state_shapes(), self.average.state_shapes()
        if not read_shapes(file).keys() - task.keys() - adapter.keys():  # before the first step of a stage
            optimizer, average = {}, {}
        expected = of_all_stages({**optimizer, **average}, self.parallel.mesh)
        names = {name: parameters.get(name.partition("/")[0]) for name in (*optimizer, *average)}
        names |= dict.fromkeys((*task, *adapter))
        tensors = read_parts(file, {**task, **expected, **adapter}, names, orders)
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

    def _assign(self, weights: Mapping[str, torch.Tensor]) -> None:
        assign(dict(self.model.named_parameters()), weights, row_orders(self.model))

    def _adapter_tensors(self) -> dict[str, torch.Tensor]:
        return {ADAPTER + name: tensor for name, tensor in self.adapter.state_dict().items()} if self.adapter else {}

    @property
    def checkpoint_size(self) -> int:
        """Size in bytes of the largest checkpoint of this run. All ranks must ask for it."""
        adapter = _shapes(self._adapter_tensors())
        task = self.task.state_shapes(len(self.task.stages))
        weights = weight_shapes(self.model.config, self.model.vocab_size)
        stages = of_all_stages({**self.optimizer.state_shapes(), **self.average.state_shapes()}, self.parallel.mesh)
        return size_in_bytes(weights, adapter, stages, task)


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
