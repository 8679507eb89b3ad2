"""Safetensors files: one with whole tensors, or shards, each with slices of the tensors.

Processes that each have a part of a model write `model-00001-of-00004.safetensors` and so on instead of
`model.safetensors`. The header of a shard says where its slices begin in the whole tensors, in the words of PyTorch's
HuggingFaceStorageWriter, so that `torch.distributed.checkpoint` can load them as well. It does not write them: it would
not flush, hash and rename its files as `storage` does, and it neither notices slices that are missing or overlap, nor
knows the order of stacked rows in tensor parallelism.

A file may be a stranger's, so its header is checked before any tensor is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from groundling.model.describe import CODE, Shape
from groundling.storage import safe_read

Region = tuple[slice, ...]
"""A part of a tensor: start and stop in each dimension."""
AGAIN = "@"
"""What follows the name of a tensor, with a number, if a shard has more than one slice of it."""

_MAX_HEADER = 16 * 2**20  # bytes; ours have about a hundred per tensor
_LARGEST = 2**48  # rows of a tensor
_OTHERS = {b"PK": "a zip file, as torch.save writes it", b"\x80": "a pickle, which could run code"}
_RENAMED = (".attn.turn.", ".attn.rope.")  # what a weight was called, and what it is called now
_SHARDING, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"  # PyTorch's words


class Slice(NamedTuple):
    """A slice of the tensor `name`, or all of it, which a file has as `key`."""

    key: str
    name: str
    region: Region


def shard_path(path: Path, number: int, count: int) -> Path:
    """The path of shard `number`, from 1, of those that together are the file `path`."""
    return path.with_stem(f"{path.stem}-{number:05}-of-{count:05}")


def files_of(path: Path) -> list[Path]:
    """`path`, or its shards if they are there instead. Raises ValueError if some are missing."""
    if path.is_file():
        return [path]
    found = sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"))
    if found != [shard_path(path, number, len(found)) for number in range(1, len(found) + 1)]:
        raise ValueError(f"{path.parent} is incomplete: it does not have all shards of {path.name}.")
    return found or [path]


def header(offsets: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """What to write into the header of a shard: where each of its slices begins in the whole tensor."""
    return {_SHARDING: json.dumps({key: {_OFFSETS: list(starts)} for key, starts in offsets.items()})}


def slices_of(path: Path, file: Any) -> list[Slice]:
    """What the opened file `path` has. Raises ValueError if a tensor is not float32 or a code not uint8, or if a shard
    does not say where its slices belong."""
    found, sharding = list[Slice](), (file.metadata() or {}).get(_SHARDING)
    about = None if sharding is None else safe_read.parse(sharding.encode(), f"The header of {path}")
    for key in list(file.keys()):
        part = file.get_slice(key)
        shape = part.get_shape()
        name, starts = key, [0] * len(shape)
        if sharding is not None:
            name, place = key.partition(AGAIN)[0], about.get(key) if isinstance(about, dict) else None
            starts = place.get(_OFFSETS) if isinstance(place, dict) else None  # type: ignore[assignment]
            if not (isinstance(starts, list) and len(starts) == len(shape) and all(map(_is_offset, starts))):
                raise ValueError(f"{path} is damaged: it does not say where its slice of {name[:80]} belongs.")
        dtype, word = ("U8", "uint8") if name.endswith(CODE) else ("F32", "float32")
        if part.get_dtype() != dtype:
            raise ValueError(f"{path} cannot be used: {key[:80]} is {part.get_dtype()}, not {word}.")
        region = tuple(slice(start, start + n) for start, n in zip(starts, shape, strict=True))
        found.append(Slice(key, name.replace(*_RENAMED), region))
    return found


def _is_offset(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def whole_shape(path: Path, name: str, regions: Sequence[Region]) -> Shape:
    """The shape of the tensor `name`, which consists of these regions. Raises ValueError if they overlap or leave gaps,
    or are not cut at the same places in all rows and columns, as shards are."""
    if len(set(map(len, regions))) == 1:
        dims = list(zip(*regions, strict=True))
        shape = tuple(max(part.stop for part in parts) for parts in dims)
        cuts = [sorted({part.start for part in parts}) for parts in dims]
        ends = [dict(pairwise([*starts, n])) for starts, n in zip(cuts, shape, strict=True)]
        if (
            all(starts[0] == 0 for starts in cuts)
            and all(end[part.start] == part.stop for end, parts in zip(ends, dims, strict=True) for part in parts)
            and len({tuple(part.start for part in region) for region in regions})
            == len(regions)
            == prod(map(len, cuts))
        ):
            return shape
    raise ValueError(f"{path} is damaged: its slices of {name[:80]} overlap or leave gaps.")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
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
