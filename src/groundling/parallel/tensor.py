"""Tensor parallelism: each rank holds a part of every matrix, and all ranks work on the same rows.

As in Megatron-LM (Shoeybi et al., 2019), the first matrix of each attention and MLP is split by outputs, so that a rank
has whole heads and whole hidden units, and the second one by inputs. One sum over the ranks follows. The embedding and
the output head are split by tokens of the vocabulary: a rank computes its part of the logits, and the cross-entropy is
computed from the parts. All parameters become DTensors of one mesh, norms as copies, so that clipping and the
optimizers need nothing new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

from groundling.model.gpt import GPT, SelfAttention, StackedLinear
from groundling.parallel.whole import whole


def parallelize(model: GPT, mesh: DeviceMesh) -> None:
    """Turn `model`, which is the same on all ranks of the 1-D `mesh`, into this rank's part of it.

    Its logits and losses are whole, and the same on all ranks. Compute losses, and their gradients, within
    `split_vocabulary`, and then call `reduce_gradients`.
    """
    ranks = mesh.size()
    for module in model.modules():
        if isinstance(module, StackedLinear):
            module.order = stacked_order(module.sizes, ranks)
            for name, parameter in list(module.named_parameters()):
                module.register_parameter(name, nn.Parameter(parameter.detach()[module.order]))
        elif isinstance(module, SelfAttention):
            query, key, value = module.heads
            module.heads = (query // ranks, key // ranks, value // ranks)
    # Each rank takes its parts from its own copy.
    parallelize_module(model, mesh, dict(_plan(model)), src_data_rank=None)
    model.register_forward_hook(lambda module, _, output: whole(output))


def stacked_order(sizes: Sequence[int], ranks: int) -> torch.Tensor:
    """The rows of stacked matrices in the order in which the n-th of `ranks` equal slices of all of them has the n-th
    slice of each."""
    slices = [rows.chunk(ranks) for rows in torch.arange(sum(sizes)).split(list(sizes))]
    return torch.cat([rows[rank] for rank in range(ranks) for rows in slices])


@contextmanager
def split_vocabulary() -> Iterator[None]:
    """A context in which cross-entropies, and their gradients, are computed from each rank's part of the logits. Other
    tensors count as copies that all ranks have."""
    with loss_parallel(), implicit_replication():
        yield


def reduce_gradients(model: nn.Module) -> None:
    """Add up what each rank has of the gradients of parameters that all ranks have, such as a norm of split heads."""
    for parameter in model.parameters():
        gradient = parameter.grad
        if isinstance(parameter, DTensor) and isinstance(gradient, DTensor):
            parameter.grad = gradient.redistribute(placements=parameter.placements)


def _plan(model: GPT) -> Iterator[tuple[str, ParallelStyle]]:
    """How each module is split, by name."""
    yield "wte", RowwiseParallel(input_layouts=Replicate(), use_local_output=True)
    if model.wpe is not None:
        yield "wpe", _Copied()
    for name, _ in model.named_modules():
        if name.endswith(("c_attn", "c_fc")):
            yield name, ColwiseParallel()
        elif name.endswith("c_proj"):
            yield name, RowwiseParallel()
        elif name.endswith(("q_norm", "k_norm")):
            yield name, _Copied(Shard(1))  # (B, heads, T, hd)
        elif name.endswith(("ln_1", "ln_2")):
            yield name, _Copied()
    yield "ln_f", _Copied(use_local_output=False)  # the head takes it as a DTensor
    if model.lm_head is not None:
        yield "lm_head", ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)


class _Copied(ParallelStyle):
    """A module whose parameters every rank has. Its input and output are copies too, or have another `placement`."""

    def __init__(self, placement: Placement | None = None, use_local_output: bool = True) -> None:
        super().__init__()
        self.placement, self.use_local_output = placement or Replicate(), use_local_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def sharded(module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> DTensor:
            return DTensor.from_local(inputs[0], mesh, [self.placement], run_check=False)

        def local(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> torch.Tensor:
            return output.to_local() if self.use_local_output else output

        return distribute_module(module, device_mesh, None, sharded, local)  # type: ignore[arg-type]
