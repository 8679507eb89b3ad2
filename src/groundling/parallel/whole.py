"""Whole tensors from the parts that ranks hold, and back: for checkpoints, and for optimizers that need whole matrices.

Where nothing is split, both directions return what they are given. `order` is that of a `StackedLinear`.
"""

from __future__ import annotations

import torch

from groundling.model.describe import Shape


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor, whose module takes a second to import."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
    """`tensor` with the parts of all ranks, which must call this together."""
    if is_sharded(tensor):
        tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return tensor if order is None else tensor[order.argsort().to(tensor.device)]


def own_part(tensor: torch.Tensor, like: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
    """The part of a whole `tensor` that this rank has of the parameter `like`, on the same device. A part stays what it
    is."""
    if is_sharded(tensor) or not is_sharded(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    tensor = tensor.to(like.device) if order is None else tensor[order.to(tensor.device)].to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def as_part(part: torch.Tensor, like: torch.Tensor, shape: Shape | None = None) -> torch.Tensor:
    """`part` as a DTensor: what is here of a tensor that is divided like the DTensor `like`. Its `shape` may be another
    one."""
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    whole = like if shape is None else torch.empty(shape, device="meta")
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
