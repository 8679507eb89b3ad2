"""Shards of a safetensors file: read whole or in part, in PyTorch's format, and rejected if slices are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from groundling.model.tensor_file import shard_path
from groundling.model.weights_file import read_regions, read_shapes, read_tensors, weights_hash, write_tensors

WHOLE = {"a": torch.arange(42.0).view(6, 7), "b": torch.arange(5.0), "c": torch.tensor(3.0)}
SHAPES = {name: tuple(x.shape) for name, x in WHOLE.items()}


def write_shards(file: Path) -> None:
    """`a` in four blocks of different sizes, `b` in two slices of one shard, `c` in the last shard."""
    blocks = [(0, 4, 0, 3), (0, 4, 3, 7), (4, 6, 0, 3), (4, 6, 3, 7)]
    for number, (top, bottom, left, right) in enumerate(blocks, start=1):
        tensors, offsets = {"a": WHOLE["a"][top:bottom, left:right]}, {"a": [top, left]}
        if number == 1:
            tensors |= {"b": WHOLE["b"][3:], "b@1": WHOLE["b"][:3]}
            offsets |= {"b": [3], "b@1": [0]}
        if number == 4:
            tensors["c"], offsets["c"] = WHOLE["c"], []
        write_tensors(shard_path(file, number, 4), tensors, offsets)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_shards(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_shards_are_read_as_one_file(file: Path) -> None:
    assert read_shapes(file) == SHAPES
    for name, tensor in read_tensors(file, SHAPES).items():
        assert torch.equal(tensor, WHOLE[name])
    assert len(weights_hash(file.parent)) == 64


@pytest.mark.parametrize("whole", [False, True])
def test_any_region_is_read(file: Path, whole: bool) -> None:
    if whole:
        write_tensors(file, WHOLE)
    wanted = [
        ("a", (slice(i, j), slice(k, m))) for i in range(6) for j in (i, i + 1, 6) for k in (0, 2, 3) for m in (3, 7)
    ]
    for (name, region), found in zip(wanted, read_regions(file, SHAPES, wanted), strict=True):
        assert torch.equal(found, WHOLE[name][region])


def test_pytorch_reads_the_shards_of_tensors_that_have_one_slice_in_each(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    for number, rows in enumerate(WHOLE["a"].split(4), start=1):
        write_tensors(shard_path(tmp_path / "model.safetensors", number, 2), {"a": rows}, {"a": [4 * number - 4, 0]})
    found = {"a": torch.zeros(6, 7)}
    load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert torch.equal(found["a"], WHOLE["a"])


def rewrite(path: Path, tensors: dict[str, torch.Tensor], sharding: Any) -> None:
    path.unlink()
    save_file(tensors, path, {"DCP_SHARDING_INFO": sharding if isinstance(sharding, str) else json.dumps(sharding)})


@pytest.mark.parametrize(
    "sharding",
    [
        "", "[", "[]", "1", {}, {"a": 1}, {"a": {}}, {"a": {"saved_offsets": None}}, {"a": {"saved_offsets": [0]}},
        {"a": {"saved_offsets": [0, -1]}}, {"a": {"saved_offsets": [0.0, 0]}}, {"a": {"saved_offsets": [True, 0]}},
        {"a": {"saved_offsets": [2**70, 0]}}, {"a": {"saved_offsets": ["0", 0]}}, '{"a": {}, "a": {}}',
        "[" * 60 + "]" * 60,
    ],
)  # fmt: skip
def test_a_shard_that_does_not_say_where_it_belongs_is_rejected(file: Path, sharding: Any) -> None:
    rewrite(shard_path(file, 3, 4), {"a": torch.zeros(2, 3)}, sharding)
    with pytest.raises(ValueError, match="is damaged: ") as error:
        read_shapes(file)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("starts", "shape"),
    [
        ([0, 0], (4, 3)), ([3, 0], (2, 3)), ([5, 0], (2, 3)), ([4, 0], (1, 3)), ([4, 0], (2, 2)), ([4, 1], (2, 3)),
        ([4, 3], (2, 4)), ([4], (2,)), ([4, 0], (3, 3)), ([4, 0], (0, 3)), ([2**40, 0], (2, 3)),
    ],
)  # fmt: skip
def test_slices_that_overlap_or_leave_gaps_are_rejected(file: Path, starts: list[int], shape: tuple[int, ...]) -> None:
    rewrite(shard_path(file, 3, 4), {"a": torch.zeros(shape)}, {"a": {"saved_offsets": starts}})
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its slices of a overlap or leave gaps\.$"):
        read_tensors(file, SHAPES)


def test_missing_shards_are_rejected(file: Path) -> None:
    shard_path(file, 2, 4).rename(file.with_name("other"))
    with pytest.raises(ValueError, match=r"is incomplete: it does not have all shards of model\.safetensors\.$"):
        read_shapes(file)
    file.with_name("other").rename(shard_path(file, 2, 5))
    with pytest.raises(ValueError, match=r"is incomplete: it does not have all shards of model\.safetensors\.$"):
        read_shapes(file)


def test_numbers_of_a_shard_are_checked(file: Path) -> None:
    write_tensors(file, WHOLE | {"b": WHOLE["b"] * torch.nan})
    with pytest.raises(ValueError, match="contains NaN or infinity, in b"):
        read_regions(file, SHAPES, [("b", (slice(1, 2),))])
