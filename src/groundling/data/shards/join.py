"""Join the folders of all shards of a text into one. Tokens are linked, not copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling import storage
from groundling.data.tokens import part_name


def join(shards: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Fill `folder`. Returns the sizes and hashes of its files of tokens, which the shards' manifests have."""
    records, before, n_documents = dict[str, Any](), np.zeros(2, np.int64), 0  # before: tokens and units
    for number, shard in enumerate(shards):
        documents, places = _numbers(shard / "documents.bin"), _numbers(shard / "places.bin").reshape(-1, 2)
        is_simple = not (shard / "files.bin").exists()
        files = np.arange(1, len(documents) + 1) if is_simple else _numbers(shard / "files.bin")
        if (tokens := shard / "tokens.bin").exists():
            name = part_name(len(records))
            storage.disk.fill(folder / name, partial(_link, tokens))
            records[name] = storage.file_records(shard)[tokens.name]
        storage.disk.write(folder / "documents.bin", (documents + before[0]).tobytes())
        storage.disk.write(folder / "places.bin", (places + before)[min(number, 1) :].tobytes())
        storage.disk.write(folder / "files.bin", (files + n_documents).tobytes())
        before, n_documents = before + places[-1], n_documents + len(documents)
    files = np.memmap(folder / "files.bin", np.int64, "r")
    one_each = len(files) == n_documents and all(
        (files[i : i + _PIECE] == np.arange(i + 1, min(i + _PIECE, n_documents) + 1)).all()
        for i in range(0, n_documents, _PIECE)
    )
    del files
    if one_each:  # files.bin is for other texts
        storage.disk.delete(folder / "files.bin")
    return records


_PIECE = 2**20  # numbers compared at a time


def _numbers(path: Path) -> npt.NDArray[np.int64]:
    return np.fromfile(path, np.int64) if path.exists() else np.empty(0, np.int64)


def _link(old: Path, new: Path) -> None:
    try:
        os.link(old, new)
    except OSError:  # a disk without hard links
        shutil.copyfile(old, new)
