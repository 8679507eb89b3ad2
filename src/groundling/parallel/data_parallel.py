"""Data parallelism: each group of processes computes gradients of its rows, and all apply their mean.

By DistributedDataParallel, each process has all weights. By `fully_shard` (FSDP2), it has a shard of each matrix, and
gathers the others of a block while it computes with the block; the optimizer then updates shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from groundling.model.compiled import Forward, compiled_parts
from groundling.model.gpt import GPT
from groundling.parallel.divide import mean_gradients, reunited
from groundling.parallel.mesh import Mesh
from groundling.parallel.whole import whole

T = TypeVar("T")


class DataParallel:
    """The gradients and figures of all data ranks as one. With one process, it does nothing."""

    def __init__(self, model: nn.Module, mesh: Mesh) -> None:
        """With a mesh that shards, this replaces the parameters of `model` by their shards."""
        self.mesh, self.model = mesh, model
        self.forward: Forward = model
        self._copies = model
        if mesh.devices is None:
            return
        if mesh.shard > 1:
            _shard(model, mesh)
        elif not mesh.divides_model:
            self._copies = DistributedDataParallel(
                model, process_group=mesh.learners, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        self.forward = self._copies
        if mesh.context > 1:
            from groundling.parallel.context import ContextForward

            self.forward = ContextForward(self._copies, mesh.devices["context"])

    def compiled(self) -> Forward:
        """`forward`, compiled when it first runs."""
        if self.mesh.shard == 1:
            return partial(self.forward, run=compiled_parts())
        for block in _blocks(self.model):
            block.compile(dynamic=False)  # within the hooks that gather its weights
        return self.forward

    def reducing(self, last: bool) -> AbstractContextManager[None]:
        """A context for the forward and backward pass of a micro-batch. Only in the `last` one of a step, the gradients
        are averaged over the ranks."""
        if self.mesh.divides_model:
            return self._reducing_parts(last)
        if self.mesh.shard > 1:
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif isinstance(self._copies, DistributedDataParallel) and not last:
            return self._copies.no_sync()
        return nullcontext()

    @contextmanager
    def _reducing_parts(self, last: bool) -> Iterator[None]:
        """`reducing` where each rank has a part of the model."""
        from groundling.parallel import tensor

        with tensor.split_vocabulary():
            yield
        if last:
            tensor.reduce_gradients(self.model)
            mean_gradients(self.model, self.mesh.learners)

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """`torch.nn.utils.clip_grad_norm_` for the whole model."""
        if self.mesh.pipeline == 1:
            return whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm))
        from groundling.parallel import pipeline

        assert isinstance(self.model, pipeline.StagedGPT)
        return pipeline.clip_grad_norm_(self.model, max_norm)

    def mean(self, figures: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The means of scalars over the ranks."""
        if self.mesh.devices is None:
            return dict(figures)
        values = torch.stack(list(figures.values()))
        dist.all_reduce(values, group=self.mesh.learners)
        return dict(zip(figures, values / self.mesh.learners.size(), strict=True))

    @contextmanager
    def unsharded(self, model: GPT) -> Iterator[GPT | None]:
        """A context in which rank 0 can run `model` alone, or a whole copy of it. Gives None on the others."""
        if self.mesh.divides_model:
            yield reunited(model, self.mesh)
            return
        parts = [*_blocks(self.model), self.model] if self.mesh.shard > 1 else []
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield model if self.mesh.is_main else None
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def _shard(model: nn.Module, mesh: Mesh) -> None:
    """Shard the parameters of `model` over the mesh, those of each block together."""
    from torch.distributed.fsdp import fully_shard  # it takes a second to import

    assert mesh.devices is not None
    over = mesh.devices["replicate", "shard"] if mesh.data > mesh.shard else mesh.devices["shard"]
    # Sharded again after each pass: the moving average and checkpoints then always see shards.
    for part in (*_blocks(model), model):
        fully_shard(part, mesh=over, reshard_after_forward=True)
    with torch.no_grad():  # makes the tensors to gather into: from inference mode, training could not use them
        model(torch.zeros(1, 1, dtype=torch.int64, device=mesh.devices.device_type))


def _blocks(model: nn.Module) -> list[Any]:
    assert isinstance(model, GPT)
    return list(model.blocks)


def shared(items: Iterable[T], mesh: Mesh) -> Iterator[tuple[T, bool]]:
    """Every so many items, those of this data rank, each with True. So that all ranks can compute together, they get
    equally many: the last one again, with False, if there is none for this rank."""
    place = -1
    for place, item in enumerate(items):
        if place % mesh.data == mesh.data_rank:
            yield item, True
    if place % mesh.data < mesh.data_rank:
        yield item, False


def total(numbers: Sequence[float], mesh: Mesh) -> list[float]:
    """The sums of `numbers` over the data ranks, in float64."""
    if mesh.devices is None:
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(values, group=mesh.readers)
    return values.tolist()
