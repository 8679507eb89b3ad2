"""A model's weights in 8 bits, as a page holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from groundling.acceleration.precision import in_int8

Shapes = list[tuple[str, list[int]]]


def pack(tensors: Mapping[str, torch.Tensor]) -> tuple[Shapes, bytes]:
    """Names and shapes, and all numbers: first those in float32, which are a scale for each row of a matrix and the
    vectors, then the matrices in int8. Both in the order of the names."""
    floats, integers = list[torch.Tensor](), list[torch.Tensor]()
    for tensor in tensors.values():
        if tensor.dim() == 2:
            numbers, tensor = in_int8(tensor)
            integers.append(numbers)
        floats.append(tensor.detach().float())
    content = b"".join(each.cpu().numpy().tobytes() for each in (*floats, *integers))
    return [(name, list(tensor.shape)) for name, tensor in tensors.items()], content


def unpack(shapes: Sequence[tuple[str, Sequence[int]]], content: bytes) -> dict[str, npt.NDArray[np.float32]]:
    """The inverse of `pack`, with matrices rounded as they are in 8 bits. Raises ValueError if the sizes do not fit."""
    rows = sum(shape[0] for _, shape in shapes)
    floats, integers = np.frombuffer(content[: 4 * rows], "<f4"), np.frombuffer(content[4 * rows :], np.int8)
    if len(floats) != rows or len(integers) != sum(math.prod(shape) for _, shape in shapes if len(shape) == 2):
        raise ValueError("The weights do not fit their shapes.")
    tensors = dict[str, npt.NDArray[np.float32]]()
    for name, shape in shapes:
        values, floats = floats[: shape[0]], floats[shape[0] :]
        if len(shape) == 2:
            numbers, integers = integers[: math.prod(shape)], integers[math.prod(shape) :]
            values = numbers.reshape(shape).astype(np.float32) * values[:, None]
        tensors[name] = values
    return tensors


def rounded(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that `unpack` gives for those that `pack` takes."""
    result = dict[str, torch.Tensor]()
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            numbers, scales = in_int8(tensor)
            tensor = numbers.float() * scales[:, None]
        result[name] = tensor
    return result
