"""The mesh: what each process does, where several train one model.

`data` groups of processes read different rows of each batch. Within a group, `pipeline` × `context` × `tensor`
processes share the work on the same rows. Data parallelism keeps whole weights in each group (ddp), or shards of them
(fsdp), with whole copies only between machines.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from groundling.config import MachineSettings
from groundling.machine import local_size
from groundling.parallel import processes

_NAMES = ("pipeline", "replicate", "shard", "context", "tensor")  # neighbours in the last ones talk most


@dataclass(frozen=True)
class Mesh:
    """The place of this process among all. `data` is the number of whole copies times that of the shards of each."""

    rank: int = 0
    size: int = 1
    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    shard: int = 1
    data_rank: int = 0
    """Which rows of a batch this process reads: in range(data)."""
    devices: DeviceMesh | None = None
    """With the dimensions pipeline, replicate, shard, context and tensor. None: there is one process."""

    @staticmethod
    def single() -> Mesh:
        return Mesh()

    @staticmethod
    def build(settings: MachineSettings, device: torch.device, mode: Literal["ddp", "fsdp"]) -> Mesh:
        """The mesh of all processes, which talk by then. Raises ValueError if they cannot be divided as `settings` say.

        With `fsdp`, weights are sharded over the processes of one machine, and each machine has a copy.
        """
        size = processes.size()
        if size == 1:
            return Mesh.single()
        data = data_size(settings, size)
        machines = max(size // local_size(), 1)
        copies = machines if data % machines == 0 and data > machines else 1
        shard = data // copies if mode == "fsdp" else 1
        shape = (settings.pipeline_parallel, data // shard, shard, settings.context_parallel, settings.tensor_parallel)
        devices = init_device_mesh(device.type, shape, mesh_dim_names=_NAMES)
        pipeline, _, _, context, tensor = shape
        data_rank = devices.get_local_rank("replicate") * shard + devices.get_local_rank("shard")
        return Mesh(processes.rank(), size, data, tensor, pipeline, context, shard, data_rank, devices)

    def __str__(self) -> str:
        """Such as `8 (data 4, shards 4, tensor 2)`."""
        parts = {"data": self.data, "shards": self.shard, "tensor": self.tensor}
        parts |= {"pipeline": self.pipeline, "context": self.context}
        return (
            f"{self.size} ({', '.join(f'{name} {n}' for name, n in parts.items() if n > 1)})" if self.devices else "1"
        )

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files and talks to the user."""
        return self.rank == 0

    @property
    def dropout_rank(self) -> int:
        """Ranks with different tokens have different numbers, and drop different activations."""
        context_rank = self.devices.get_local_rank("context") if self.devices else 0
        return self.data_rank * self.context + context_rank

    @property
    def divides_model(self) -> bool:
        """Whether each process has a part of the model and computes with that."""
        return self.tensor > 1 or self.pipeline > 1

    @property
    def has_parts(self) -> bool:
        """Whether each process has a part of the weights, as by `divides_model`, or shards."""
        return self.divides_model or self.shard > 1

    @property
    def is_first_of_stage(self) -> bool:
        """Whether it is the one of its pipeline stage that gives the others' tensors to the main process."""
        return self.is_first_beside({"pipeline"})

    def is_first_beside(self, dims: Collection[str]) -> bool:
        """Whether it is the first of the processes at its place in the dimensions `dims`, which have the same there."""
        return self.devices is None or not any(self.devices.get_local_rank(name) for name in _NAMES if name not in dims)

    @cached_property
    def learners(self) -> dist.ProcessGroup:
        """The processes with different gradients for the same part of the model: over these, they are averaged."""
        assert self.devices is not None
        return self.devices["replicate", "shard", "context"]._flatten("learners").get_group()

    @cached_property
    def readers(self) -> dist.ProcessGroup:
        """The processes with different rows, one of each group."""
        assert self.devices is not None
        return self.devices["replicate", "shard"]._flatten("readers").get_group()


def data_size(settings: MachineSettings, size: int) -> int:
    """How many groups of processes read different rows. Raises ValueError if `size` processes cannot be grouped so."""
    together = settings.tensor_parallel * settings.pipeline_parallel * settings.context_parallel
    if size % together:
        raise ValueError(
            f"{size} process(es) cannot be divided by --tensor-parallel {settings.tensor_parallel} × "
            f"--pipeline-parallel {settings.pipeline_parallel} × --context-parallel {settings.context_parallel} = "
            f"{together}. Use a multiple of {together} --processes."
        )
    return size // together
