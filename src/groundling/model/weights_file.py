"""Weights in safetensors files. A file may be a stranger's, so its header is checked before any tensor is read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from groundling import storage
from groundling.config import ModelSettings
from groundling.model.describe import Shape, inference_memory, weight_shapes
from groundling.model.gpt import GPT

_MAX_HEADER = 16 * 2**20  # bytes; ours have about a hundred per tensor
_OTHERS = {b"PK": "a zip file, as torch.save writes it", b"\x80": "a pickle, which could run code"}
_RENAMED = (".attn.turn.", ".attn.rope.")  # what a weight was called, and what it is called now


def read_shapes(path: Path) -> dict[str, Shape]:
    """The shapes of the tensors in a file, by name, from its header. All must be float32.

    Raises ValueError, naming the file, if it is not a safetensors file, if its header is too long, or if a
    tensor is not float32.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        odd = next((name for name, each in slices.items() if each.get_dtype() != "F32"), None)
        if odd is not None:
            raise ValueError(f"{path} cannot be used: {odd[:80]} is {slices[odd].get_dtype()}, not float32.")
        return {name.replace(*_RENAMED): tuple(each.get_shape()) for name, each in slices.items()}


def read_tensors(path: Path, expected: Mapping[str, Shape]) -> dict[str, torch.Tensor]:
    """The tensors of a file, by name.

    Raises ValueError, naming the file, if names or shapes differ from `expected`, or if a number is not finite.
    """
    _compare(path, read_shapes(path), expected)
    with _opened(path) as file:
        tensors = {name.replace(*_RENAMED): file.get_tensor(name) for name in list(file.keys())}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path} contains NaN or infinity, in {name[:80]}: training had diverged before it was saved. "
                "Use an earlier checkpoint."
            )
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a new safetensors file. Raises OSError if the disk refuses."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        storage.disk.fill(path, lambda file: save_file(plain, file))
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None


def load_weights(path: Path, model: GPT) -> None:
    """Fill `model` from a checkpoint folder. Raises ValueError if the weights do not fit or are not finite."""
    expected = weight_shapes(model.config, model.vocab_size)
    model.load_state_dict(read_tensors(path / "model.safetensors", expected))


def check_fits(path: Path, config: ModelSettings, vocab_size: int) -> None:
    """Raise ValueError if the weights of a checkpoint folder are not of a model with these settings."""
    weights = path / "model.safetensors"
    _compare(weights, read_shapes(weights), weight_shapes(config, vocab_size))


def check_memory(config: ModelSettings, vocab_size: int) -> None:
    """Raise ValueError if this machine has too little memory for a model with these settings."""
    needed, here = inference_memory(config, vocab_size), psutil.virtual_memory().total
    if needed > here:
        raise ValueError(
            f"A model of {config.n_layer} layers × {config.n_embd} with a context of {config.block_size:,} needs "
            f"{needed / 1e9:,.0f} GB of memory, but this machine has {here / 1e9:,.0f}."
        )


def _compare(path: Path, shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    if shapes != expected:
        wrong = sorted(n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n))
        raise ValueError(f"The weights in {path} do not fit the model in its config.json: {', '.join(wrong[:3]):.200}.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, opened after a check of its header's length."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 0 < length <= min(_MAX_HEADER, os.path.getsize(path) - 8):
            kind = next((kind for sign, kind in _OTHERS.items() if start.startswith(sign)), None)
            if kind is not None:
                raise ValueError(f"{path} is not a safetensors file but {kind}. It was not opened.")
            raise ValueError(f"{path} is not a safetensors file: its header cannot have {length:,} bytes.")
        with safe_open(path, "pt") as opened:  # checks that header and file fit together
            yield opened
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error!s:.200}.") from None
