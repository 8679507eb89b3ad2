"""How a number of processes divides the training of a model: checked by rank 0, then made on all ranks."""

from __future__ import annotations

from typing import Any, Literal

import psutil
import torch

from groundling.config import Config, MachineSettings
from groundling.machine import local_size
from groundling.model.describe import bytes_saved, matrix_parameters
from groundling.parallel import processes
from groundling.parallel.divide import check_divisible
from groundling.parallel.mesh import Mesh, data_size

_BYTES = 16  # per parameter: weight, gradient, and two moments, in float32
_COMFORTABLE = 0.5  # of the memory; activations take the rest


def started_processes(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a verb, with the number of processes that were started.

    Raises ValueError if they ask for another number.
    """
    here = processes.size()
    wanted = MachineSettings(processes=settings.get("processes", here)).processes
    if wanted != here:
        raise ValueError(
            f"--processes {wanted}: this is one of {here} process(es). Start {wanted} with the command `groundling`, "
            f"or with `torchrun --nproc-per-node {wanted} -m groundling`."
        )
    return settings | {"processes": here} if here > 1 else settings


def check_processes(config: Config, size: int) -> None:
    """Raise ValueError if `size` processes cannot train together in the way that `config` says."""
    machine, training = config.machine, config.training
    check_divisible(config)
    data = data_size(machine, size)
    if training.batch_size < data:
        raise ValueError(
            f"--batch-size {training.batch_size} is too small for {data} processes that each read some of its rows. "
            f"Use --batch-size {data} or more, or fewer --processes."
        )
    if machine.parallel == "fsdp" and size > 1 and _needs_copies(config):
        reason = "--adapter" if training.generations == 1 else "--generations"
        raise ValueError(f"--parallel fsdp does not work with {reason}. Use --parallel ddp.")


def new_mesh(config: Config, vocab_size: int, device: torch.device) -> Mesh:
    """The mesh of all processes. By `--parallel auto`, they shard a model whose training would fill their memory."""
    settings = config.machine
    mode: Literal["ddp", "fsdp"]
    if settings.parallel != "auto":
        mode = settings.parallel
    elif settings.tensor_parallel * settings.pipeline_parallel * settings.context_parallel > 1:
        mode = "ddp"
    else:
        needed = _BYTES * matrix_parameters(config.model, vocab_size)
        needed -= bytes_saved(config.model, vocab_size, config.training.optimizer_bits)
        mode = "ddp" if _needs_copies(config) or needed <= _COMFORTABLE * _memory(device) else "fsdp"
    return Mesh.build(settings, device, mode)


def _needs_copies(config: Config) -> bool:
    """Whether each process needs whole weights: for an adapter, or for a teacher that is a copy of the model."""
    return config.training.generations > 1 or bool(config.method and config.method.adapter)


def _memory(device: torch.device) -> int:
    """Bytes of memory for each process, on rank 0, so that all decide alike."""
    if device.type == "cuda":
        here = torch.cuda.get_device_properties(device).total_memory
    else:
        here = psutil.virtual_memory().total // local_size()
    return processes.from_main(here)
