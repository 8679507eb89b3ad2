"""Models that are too large, or contexts that are too long, for one process: who computes which part.

What takes a second to import is imported only where a model is divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from groundling.config import Config, flag
from groundling.model.describe import block_columns
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.parallel.mesh import Mesh
from groundling.parallel.shards import gathered, local, row_orders

if TYPE_CHECKING:
    from groundling.parallel.pipeline import LossOf, Pipeline

T = TypeVar("T")


def check_divisible(config: Config) -> None:
    """Raise ValueError if a model cannot be divided as its settings say, or not for its task."""
    machine, model = config.machine, config.model
    ways = ("tensor_parallel", "pipeline_parallel", "context_parallel")
    tensor, pipeline, context = options = [f"{flag(name)} {getattr(machine, name)}" for name in ways]
    used = [option for option, name in zip(options, ways, strict=True) if getattr(machine, name) > 1]
    if not used:
        return
    if config.method and config.method.adapter:
        raise ValueError(f"{used[0]} does not work with --adapter. Leave one of them out.")
    if config.training.generations > 1:
        raise ValueError(f"{used[0]} does not work with --generations. Leave one of them out.")
    if machine.parallel == "fsdp":
        raise ValueError(f"{used[0]} does not work with --parallel fsdp. Use --parallel ddp.")
    if machine.compile == "on":
        raise ValueError(f"{used[0]} does not work with --compile on. Use --compile off.")
    if machine.pipeline_parallel > 1 and machine.context_parallel > 1:
        raise ValueError(f"{pipeline} does not work with {context}. Use --tensor-parallel with one of them.")
    for name, count in (
        ("attention heads (--n-head)", model.n_head),
        ("key and value heads (--n-kv-head)", model.kv_heads),
        ("hidden units in each MLP (--mlp-size)", model.n_hidden),
    ):
        if count % machine.tensor_parallel:
            raise ValueError(f"{tensor} gives all ranks equal parts, but {count} {name} cannot be divided so.")
    if config.training.optimizer_bits == 8:
        for columns in (model.n_head * model.head_dim, model.n_hidden):
            block = block_columns((model.n_embd, columns))
            if block and columns // machine.tensor_parallel % block:
                raise ValueError(
                    f"{tensor} divides rows of {columns:,} weights within blocks of {block} that share a scale in 8 "
                    "bits. Use --optimizer-bits 32, or fewer ranks."
                )
    if model.n_layer < machine.pipeline_parallel:
        raise ValueError(f"{pipeline} needs a block for each rank, but --n-layer is {model.n_layer}.")
    if model.block_size % machine.context_parallel:
        raise ValueError(
            f"{context} gives all ranks equal parts, but --block-size {model.block_size} cannot be divided so."
        )


def divided(model: GPT, mesh: Mesh) -> GPT:
    """This rank's part of a model that is the same on all ranks. `model` itself is used up."""
    if mesh.devices is None:
        return model
    if mesh.tensor > 1:
        from groundling.parallel import tensor

        tensor.parallelize(model, mesh.devices["tensor"])
    if mesh.pipeline > 1:
        from groundling.parallel.pipeline import StagedGPT

        return StagedGPT(model, mesh.devices["pipeline"].get_group())
    return model


def new_pipeline(model: GPT, loss: LossOf, mesh: Mesh) -> Pipeline | None:
    """What computes the gradients of a model that is divided into stages. Otherwise None."""
    if mesh.pipeline == 1:
        return None
    from groundling.parallel.pipeline import Pipeline, StagedGPT

    assert isinstance(model, StagedGPT)
    return Pipeline(model, loss, model.device)


def of_all_stages(mine: Mapping[str, T], mesh: Mesh) -> dict[str, T]:
    """What each stage has by name, together. All ranks must call this."""
    if mesh.devices is None or mesh.pipeline == 1:
        return dict(mine)
    stages: list[Any] = [None] * mesh.pipeline
    dist.all_gather_object(stages, dict(mine), mesh.devices["pipeline"].get_group())
    return {name: value for stage in stages for name, value in stage.items()}


def reunited(model: GPT, mesh: Mesh) -> GPT | None:
    """The whole of a model that is divided, on the CPU of rank 0. All ranks must call this."""
    weights = gathered(dict(model.named_parameters()), row_orders(model), mesh)
    if not mesh.is_main:
        return None
    whole = InitialModel(model.config, model.vocab_size, seed=0).build()
    whole.load_state_dict(weights)
    return whole


def mean_gradients(model: torch.nn.Module, group: dist.ProcessGroup) -> None:
    """Average the gradients over a group, each rank those of its part of the model."""
    parts = [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([part.flatten() for part in parts]) / group.size()
    dist.all_reduce(flat, group=group)
    for part, mean in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(mean.view_as(part))
