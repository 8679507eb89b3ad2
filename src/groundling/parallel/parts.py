"""The parts of tensors that are on this rank: copied to save them, and read from a file of any number of processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from groundling.model.describe import Shape
from groundling.model.tensor_file import AGAIN, Region
from groundling.model.weights_file import dtype_of, read_regions
from groundling.parallel.divide import of_all_stages
from groundling.parallel.mesh import Mesh
from groundling.parallel.shards import Orders, local
from groundling.parallel.whole import as_part, is_sharded


class Parts(NamedTuple):
    """Slices of tensors on the CPU, by their keys in a file, and where each begins in the whole tensor."""

    tensors: dict[str, torch.Tensor]
    offsets: dict[str, tuple[int, ...]]


@torch.no_grad()
def copied_parts(tensors: Mapping[str, torch.Tensor], orders: Orders, mesh: Mesh) -> Parts:
    """Copies of what this rank has to save of `tensors`: what several ranks have, only one of them saves.

    All ranks must call this. A name may have a `/quantity` after that of the parameter.
    """
    stage = mesh.devices.get_local_rank("pipeline") if mesh.devices else 0
    stage_of = of_all_stages(dict.fromkeys(tensors, stage), mesh)
    parts = Parts({}, {})
    for name, tensor in tensors.items():
        if stage_of[name] != stage or not mesh.is_first_beside({"pipeline", *_split_over(tensor)}):
            continue
        here, start = local(tensor.detach()), 0
        for number, region in enumerate(_regions(tuple(tensor.shape), tensor, orders.get(_parameter(name)))):
            key = f"{name}{AGAIN}{number}" if number else name
            part = here
            if region:
                stop = start + region[0].stop - region[0].start
                part, start = here[start:stop], stop
            parts.tensors[key] = part.to("cpu", copy=True)
            parts.offsets[key] = tuple(side.start for side in region)
    return parts


def read_parts(
    path: Path, expected: Mapping[str, Shape], names: Mapping[str, torch.Tensor | None], orders: Orders
) -> dict[str, torch.Tensor]:
    """Of the tensors in a file or its shards, those in `names`: each whole, or the part that is here of a DTensor that
    is given there and divided in the same way.

    Raises ValueError, naming the file, if names or shapes differ from `expected`, or if a number is not finite.
    """
    wanted = [
        (name, region)
        for name, like in names.items()
        for region in _regions(expected[name], like, orders.get(_parameter(name)))
    ]
    found = defaultdict[str, list[torch.Tensor]](list)
    for (name, _), tensor in zip(wanted, read_regions(path, expected, wanted), strict=True):
        found[name].append(tensor)
    tensors = dict[str, torch.Tensor]()
    for name, like in names.items():
        if like is None or not is_sharded(like) or not expected[name]:
            (tensors[name],) = found[name]
            continue
        none = torch.empty(0, *expected[name][1:], dtype=dtype_of(name))
        tensors[name] = as_part(torch.cat([none, *found[name]]).to(like.device), like, expected[name])
    return tensors


def _parameter(name: str) -> str:
    return name.partition("/")[0]


def _split_over(tensor: torch.Tensor) -> set[str]:
    """The dimensions of the mesh over which a tensor is split."""
    if not is_sharded(tensor):
        return set()
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor) and tensor.device_mesh.mesh_dim_names
    names = tensor.device_mesh.mesh_dim_names
    return {name for name, placement in zip(names, tensor.placements, strict=True) if placement.is_shard()}


def _regions(shape: Shape, like: torch.Tensor | None, order: torch.Tensor | None) -> list[Region]:
    """Where the part that is here is in a whole tensor of this `shape`, which is divided as `like`: the places of its
    rows, in their order here. `order` is that of a `StackedLinear`."""
    if like is None or not is_sharded(like) or not shape:
        return [tuple(slice(0, n) for n in shape)]
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(like, DTensor)
    sizes, starts = compute_local_shape_and_global_offset(shape, like.device_mesh, like.placements)
    rows, *others = (slice(start, start + n) for start, n in zip(starts, sizes, strict=True))
    if 0 in sizes:
        return []
    if order is None:
        return [(rows, *others)]
    # Runs of rows that follow one another in the whole tensor.
    runs = [list(run) for _, run in groupby(enumerate(order[rows].tolist()), lambda pair: pair[1] - pair[0])]
    return [(slice(run[0][1], run[-1][1] + 1), *others) for run in runs]
