"""Tensors of which each process may hold a shard (PyTorch's DTensor): the part here, and copies of wholes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
import torch.nn as nn

from groundling.model.gpt import StackedLinear
from groundling.parallel.mesh import Mesh
from groundling.parallel.whole import is_sharded, own_part, whole

Orders = Mapping[str, torch.Tensor]
"""The orders of rows, by the name of a parameter: see parallel/tensor.py."""


def row_orders(model: nn.Module) -> dict[str, torch.Tensor]:
    """The orders of the rows of a model's parameters, where they are not the usual ones."""
    return {
        f"{name}.{parameter}": module.order
        for name, module in model.named_modules()
        if isinstance(module, StackedLinear) and module.order is not None
        for parameter, _ in module.named_parameters()
    }


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that is here. It shares memory with it."""
    part: torch.Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def rows_here(sizes: Sequence[int], matrix: torch.Tensor, order: torch.Tensor | None = None) -> list[int]:
    """Of matrices with `sizes` rows that are stacked in `matrix`: how many rows of each are here."""
    if not is_sharded(matrix):
        return list(sizes)
    if order is not None:  # a slice of each
        return [n * len(local(matrix)) // len(matrix) for n in sizes]
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(matrix, DTensor)
    shape, offset = compute_local_shape_and_global_offset(matrix.shape, matrix.device_mesh, matrix.placements)
    first, last = offset[0], offset[0] + shape[0]
    return [max(0, min(end, last) - max(end - n, first)) for n, end in zip(sizes, accumulate(sizes), strict=True)]


@torch.no_grad()
def assign(tensors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], orders: Orders) -> None:
    """Copy whole `values` into the tensors of the same names."""
    for name, tensor in tensors.items():
        tensor.copy_(own_part(values[name], tensor, orders.get(name)))


def gathered(tensors: Mapping[str, torch.Tensor], orders: Orders, mesh: Mesh) -> dict[str, torch.Tensor]:
    """The whole tensors, on rank 0. All ranks must call this.

    One at a time is gathered on the device. A name may have a `/quantity` after that of the parameter.
    """
    kept = dict[str, torch.Tensor]()
    for name, tensor in tensors.items():
        order = orders.get(name.partition("/")[0]) if tensor.dim() else None
        found = whole(tensor.detach(), order)
        if mesh.is_first_of_stage:
            kept[name] = found.cpu() if is_sharded(tensor) else found
    if mesh.devices is None or mesh.pipeline == 1 or not mesh.is_first_of_stage:
        return kept
    return _from_all_stages(kept, mesh.devices["pipeline"].get_group())


def _from_all_stages(tensors: Mapping[str, torch.Tensor], group: dist.ProcessGroup) -> dict[str, torch.Tensor]:
    """The tensors of all stages, on the CPU of the first one. What several have is that of the first of them."""
    listed: list[dict[str, tuple[torch.Size, torch.dtype]]] = [{} for _ in range(group.size())]
    dist.all_gather_object(listed, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}, group)
    found = dict(tensors)
    for stage, shapes in enumerate(listed[1:], start=1):
        for name, (shape, dtype) in shapes.items():
            if any(name in before for before in listed[:stage]):
                continue
            if group.rank() == 0:
                found[name] = torch.empty(shape, dtype=dtype)
                dist.recv(found[name], group=group, group_src=stage)
            elif group.rank() == stage:
                dist.send(tensors[name].cpu().contiguous(), group=group, group_dst=0)
    return found
