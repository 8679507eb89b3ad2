"""Tensors in a checkpoint: read whole or in part from a safetensors file or its shards, and written."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from groundling import storage
from groundling.config import ModelSettings
from groundling.model.describe import CODE, Shape, inference_memory, weight_shapes
from groundling.model.gpt import GPT
from groundling.model.tensor_file import Region, files_of, header, opened, slices_of, whole_shape


def read_shapes(path: Path) -> dict[str, Shape]:
    """The shapes of the whole tensors in a file or its shards, by name, from the headers. Codes must be uint8, and
    all others float32.

    Raises ValueError, naming the file, if it is not a safetensors file, if its header is too long, if a tensor has
    another type, or if slices are missing or overlap.
    """
    regions = defaultdict[str, list[Region]](list)
    for file in files_of(path):
        with opened(file) as tensors:
            for part in slices_of(file, tensors):
                regions[part.name].append(part.region)
    return {name: whole_shape(path, name, parts) for name, parts in regions.items()}


def read_tensors(path: Path, expected: Mapping[str, Shape]) -> dict[str, torch.Tensor]:
    """The whole tensors of a file or its shards, by name.

    Raises ValueError, naming the file, if names or shapes differ from `expected`, or if a number is not finite.
    """
    wanted = [(name, tuple(slice(0, n) for n in shape)) for name, shape in expected.items()]
    return dict(zip(expected, read_regions(path, expected, wanted), strict=True))


def dtype_of(name: str) -> torch.dtype:
    """The type of a tensor in a checkpoint, by its name."""
    return torch.uint8 if name.endswith(CODE) else torch.float32


def read_regions(path: Path, expected: Mapping[str, Shape], wanted: Sequence[tuple[str, Region]]) -> list[torch.Tensor]:
    """Parts of tensors, each given by the tensor's name and the region. Only these are read.

    Raises ValueError as `read_tensors` does.
    """
    _compare(path, read_shapes(path), expected)
    found, places = dict[int, torch.Tensor](), defaultdict[str, list[int]](list)
    for i, (name, _) in enumerate(wanted):
        places[name].append(i)
    for file in files_of(path):
        with opened(file) as tensors:
            for part in slices_of(file, tensors):
                for i in places[part.name]:
                    name, region = wanted[i]
                    if region == part.region:
                        found[i] = tensors.get_tensor(part.key)
                        continue
                    if i not in found:
                        found[i] = torch.empty([side.stop - side.start for side in region], dtype=dtype_of(name))
                    if common := _overlap(region, part.region):
                        there = tensors.get_slice(part.key)[_within(common, part.region)]
                        found[i][_within(common, region)] = there
    for i, tensor in found.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path} contains NaN or infinity, in {wanted[i][0][:80]}: training had diverged before it was saved. "
                "Use an earlier checkpoint."
            )
    return [found[i] for i in range(len(wanted))]


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], offsets: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Write a new safetensors file. In a shard, `offsets` says where each slice begins in the whole tensor.

    Raises OSError if the disk refuses.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = None if offsets is None else header({name: offsets[name] for name in tensors})
    try:
        storage.disk.fill(path, lambda file: save_file(plain, file, about))
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None


def weights_hash(checkpoint: Path) -> str:
    """A hash of the weights in a checkpoint folder: that of the file, or one of the hashes of its shards."""
    hashes = [storage.sha256(file) for file in files_of(checkpoint / "model.safetensors")]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


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


def _overlap(a: Region, b: Region) -> Region | None:
    """The part of a tensor that is in both regions."""
    both = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return both if all(side.start < side.stop for side in both) else None


def _within(part: Region, region: Region) -> Region:
    """Where `part` is in a tensor that has only the `region`."""
    return tuple(slice(p.start - r.start, p.stop - r.start) for p, r in zip(part, region, strict=True))
