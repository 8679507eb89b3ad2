"""Reading safetensors that a stranger may have made: the header first, then the numbers, if it is as expected."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open

from groundling.config import ModelSettings
from groundling.model.describe import Shape, memory_to_write, weight_shapes

_LARGEST_HEADER = 16 * 2**20  # bytes; ours take a hundred a tensor
_OTHERS = {b"PK": "a zip file, such as torch.save writes", b"\x80": "a pickle, which could run code"}


def read_shapes(path: Path) -> dict[str, Shape]:
    """The shapes of the tensors in a file, by name, as its header tells; all float32. No tensor is read.

    Raises ValueError, naming the file, if it is no safetensors file, has a header of an absurd length, or holds
    numbers of another kind.
    """
    try:
        _check_start(path)
        with safe_open(path, "pt") as file:  # checks that header and file fit together
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            odd = next((name for name, each in slices.items() if each.get_dtype() != "F32"), None)
            if odd is not None:
                raise ValueError(f"{path} cannot be used: {odd[:80]} is {slices[odd].get_dtype()}, and not float32.")
            return {name: tuple(each.get_shape()) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error!s:.200}.") from None


def read_tensors(path: Path, expected: Mapping[str, Shape]) -> dict[str, torch.Tensor]:
    """The tensors of a file, after a look at its header.

    Raises ValueError, naming the file, if names or shapes are not those that are `expected`, or if a number is
    infinite or none.
    """
    shapes, tensors = read_shapes(path), dict[str, torch.Tensor]()
    _compare(path, shapes, expected)
    try:
        with safe_open(path, "pt") as file:
            for name in shapes:
                tensors[name] = file.get_tensor(name)
                if not tensors[name].isfinite().all():
                    raise ValueError(
                        f"{path} holds numbers that are infinite or none, in {name[:80]}: training had gone wrong when "
                        "it was saved. Use an earlier checkpoint."
                    )
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error!s:.200}.") from None
    return tensors


def check_fits(path: Path, config: ModelSettings, vocab_size: int) -> None:
    """Raise ValueError if a checkpoint's weights are not those of the model of these settings, by its header."""
    weights = path / "model.safetensors"
    _compare(weights, read_shapes(weights), weight_shapes(config, vocab_size))


def check_memory(config: ModelSettings, vocab_size: int) -> None:
    """Raise ValueError if a model of these settings cannot be held by this machine: before it is made."""
    needed, here = memory_to_write(config, vocab_size), psutil.virtual_memory().total
    if needed > here:
        raise ValueError(
            f"A model of {config.n_layer} layers × {config.n_embd} with a context of {config.block_size:,} needs "
            f"{needed / 1e9:,.0f} GB of memory, and this machine has {here / 1e9:,.0f}."
        )


def _compare(path: Path, shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    if shapes != expected:
        wrong = sorted(n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n))
        raise ValueError(f"The numbers in {path} do not fit the model in its config.json: {', '.join(wrong[:3]):.200}.")


def _check_start(path: Path) -> None:
    """The length of the header, before it is read."""
    with path.open("rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < length <= min(_LARGEST_HEADER, os.path.getsize(path) - 8):
        kind = next((kind for sign, kind in _OTHERS.items() if start.startswith(sign)), None)
        if kind is not None:
            raise ValueError(f"{path} is no safetensors file but {kind}: it is not opened.")
        raise ValueError(f"{path} is no safetensors file: its header cannot have {length:,} bytes.")
