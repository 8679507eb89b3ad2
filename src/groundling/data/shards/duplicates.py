"""Find documents that are exact copies of earlier ones, to leave them out.

Each document gets a hash of 16 bytes, so two different ones among a billion share one with a probability of 10⁻²¹. The
hashes are on the disk and are compared in groups, so memory stays below 1 GB, however many documents there are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling import storage
from groundling.data.formats import Reading
from groundling.data.progress import Notice, Progress, ProgressMeter
from groundling.data.shards.kept import Kept
from groundling.data.shards.plan import Shard, shards_of
from groundling.data.shards.read import Facts, ShardReader, finished_shards, once, read_all
from groundling.data.sources import Source

_COMPARED = 2**24  # documents at once
_SIZE = 16  # bytes of a hash


def without_copies(source: Source, fingerprint: str, processes: int, notice: Notice, progress: Progress) -> Source:
    """The same text, of which only the first of equal documents is read. What was found stays in the cache.

    Plain texts are not cut into shards then. The result does not depend on the number of processes.
    """
    shards = shards_of(source, cut_texts=False)
    r = source.reading
    key = [1, fingerprint, r.field, r.document_separator, *(shard.name for shard in shards)]
    folder = storage.cache_folder() / "duplicates" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    storage.make_folder(folder.parent)
    with storage.locked(folder.with_suffix(".lock")), finished_shards(folder.with_suffix(".shards")) as parts:
        try:
            about = storage.verify_once(folder)
        except (ValueError, OSError):
            storage.remove_folder(folder)
            storage.remove_temporary(folder.parent, folder.name)
            about = _compare(source, shards, fingerprint, folder, parts, processes, notice, progress)
    if about["copies"]:
        notice(f"Left out {about['copies']:,} of {about['starts'][-1]:,} documents: copies of earlier ones.")
    path = folder / "kept.bin"
    return dataclasses.replace(source, kept=tuple(Kept(path, *ends) for ends in pairwise(about["starts"])))


def _compare(
    source: Source, shards: Sequence[Shard], fingerprint: str, folder: Path, parts: Path, processes: int,
    notice: Notice, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Write `kept.bin`. Returns where each shard's documents start in it, and the number of copies."""
    meter = ProgressMeter(progress, "looking for copies in", source.size)
    read = partial(_hashed, name=source.name, reading=source.reading, parts=parts)
    facts, _ = read_all(source, shards, fingerprint, read, processes, notice, lambda shard: meter.add(shard.size))
    about: dict[str, Any] = {"starts": [0, *accumulate(each["documents"] for each in facts)]}
    paths = [parts / shard.name / "hashes.bin" for shard in shards]
    with storage.new_folder(folder, about) as temporary:
        write = partial(_write_kept, paths, about["starts"])
        storage.disk.fill(temporary / "kept.bin", lambda path: about.update(copies=write(path)))
    return about


def _hashed(shard: Shard, name: str, reading: Reading, parts: Path) -> Facts:
    return once(shard, name, parts / shard.name, partial(_write_hashes, shard, reading))


def _write_hashes(shard: Shard, reading: Reading, folder: Path) -> Facts:
    reader, hashes, n = ShardReader(shard, reading), bytearray(), 0
    for file in reader.files:
        for document in reader.documents(file):
            digest = hashlib.blake2b(digest_size=_SIZE)
            for chunk in document.chunks:
                digest.update(chunk.encode())
            hashes += digest.digest()
            n += 1
    storage.disk.write(folder / "hashes.bin", hashes)
    return {"documents": n} | reader.facts


def _write_kept(paths: Sequence[Path], starts: Sequence[int], path: Path) -> int:
    """Write for each document whether it is the first with its hash. Returns how many are not."""
    path.write_bytes(b"")
    if not starts[-1]:
        return 0
    kept, copies = np.memmap(path, np.bool_, "w+", shape=(starts[-1],)), 0
    kept[:] = True
    groups = -(-starts[-1] // _COMPARED)
    for group in range(groups):
        rows, places = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
        for file, start in zip(paths, starts, strict=False):
            hashes = np.fromfile(file, np.uint64).reshape(-1, 2)
            here = np.flatnonzero(hashes[:, 0] % np.uint64(groups) == group)
            rows.append(hashes[here])
            places.append(here + start)
        found = np.concatenate(places)[_repeated(np.concatenate(rows))]
        kept[found] = False
        copies += len(found)
    kept.flush()
    return copies


def _repeated(rows: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The rows that equal an earlier one."""
    order = np.lexsort((rows[:, 1], rows[:, 0]))  # stable: equal rows stay in their order
    return order[1:][(rows[order[1:]] == rows[order[:-1]]).all(axis=1)]
