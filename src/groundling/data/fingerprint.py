"""Hashes of a text and its files, and how two texts differ."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np

from groundling.data.files import TextFile, read_bytes
from groundling.data.progress import Progress, ProgressMeter, silent
from groundling.data.shards.pool import processes_for
from groundling.data.sources import Source

MOST_FILES = 1000
"""A run records the names and hashes of this many, to describe a later change of the text."""
_NAMED = 3  # files to name for each kind of change


@dataclass(frozen=True)
class TextFingerprint:
    """`fingerprint` is the SHA-256 of the files' bytes and formats, without their names. `files` has name, size in
    bytes and SHA-256 of each of the first thousand, and `parts` the fingerprints of the text's inputs."""

    fingerprint: str
    files: tuple[dict[str, Any], ...]
    parts: tuple[str, ...] = ()


def fingerprint_of(source: Source, progress: Progress = silent) -> TextFingerprint:
    """Read the whole text and hash it, several files at once if it is large. Raises OSError with a sentence if it
    cannot be read."""
    meter, digests, facts = ProgressMeter(progress, "checking", source.size), list[bytes](), list[dict[str, Any]]()
    with _hashed(source, meter) as hashed:
        for file, (digest, size) in zip(source.files, hashed, strict=True):
            digests.append(digest)
            if len(facts) < MOST_FILES:
                name = file.short if len(source.files) > 1 else source.name
                facts.append({"name": name[:4096], "bytes": size, "sha256": digest.hex()})
    ends = [0, *(each.end for each in source.inputs)]
    parts = (combined(source.files[start:end], digests[start:end]) for start, end in pairwise(ends))
    return TextFingerprint(combined(source.files, digests), tuple(facts), tuple(parts))


@contextmanager
def _hashed(source: Source, meter: ProgressMeter) -> Iterator[Iterator[tuple[bytes, int]]]:
    """The hash and the size of each file. Threads are enough: Python lets them hash and unpack at the same time."""
    threads = processes_for(source.size) if len(source.files) > 1 else 1
    if threads == 1:
        yield (_hash(file, meter.add) for file in source.files)
        return
    executor = ThreadPoolExecutor(threads)

    def results() -> Iterator[tuple[bytes, int]]:
        for file, found in zip(source.files, executor.map(_hash, source.files), strict=True):
            meter.add(file.size)
            yield found

    try:
        yield results()
    finally:
        executor.shutdown(cancel_futures=True)


def _hash(file: TextFile, progress: Callable[[int], None] = silent) -> tuple[bytes, int]:
    digest, size = hashlib.sha256(), 0
    for chunk in read_bytes(file):
        digest.update(chunk)
        size += len(chunk)
        progress(len(chunk))
    return digest.digest(), size


class HashingSource:
    """A source that hashes what is read from it, to check afterwards that it was the expected text."""

    def __init__(self, source: Source) -> None:
        self._digests = [b""] * len(source.files)  # if a file is read twice, the last time counts
        files = (
            dataclasses.replace(file, on_read=partial(self._digests.__setitem__, i))
            for i, file in enumerate(source.files)
        )
        self.source = dataclasses.replace(source, files=tuple(files))

    @property
    def fingerprint(self) -> str:
        """Of what was read, once all of it was."""
        return combined(self.source.files, self._digests)

    @property
    def hex_digests(self) -> list[str]:
        """The hash of each file that was read."""
        return [digest.hex() for digest in self._digests]


def refuse_edited(name: str) -> NoReturn:
    raise ValueError(
        f"The text {name} was changed while it was read. Run the same command again when no program writes to it."
    )


def combined(files: Sequence[TextFile], digests: Sequence[bytes]) -> str:
    """The fingerprint of a text, SHA-256 in hexadecimal, from the SHA-256 of each of its files."""
    formats = [b"" if file.format == "text" else file.format.encode() for file in files]
    return hashlib.sha256(b"".join(map(bytes.__add__, digests, formats))).hexdigest()


def difference(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    """How the files of a text changed, such as `1 file was added (c.txt), 2 files were edited (a.txt, b.txt)`; empty if
    they show no change. Each has `name` and `sha256`."""
    old, new = ({each["name"]: each["sha256"] for each in files} for files in (before, now))
    added, renamed, removed = list[str](), list[str](), [name for name in old if name not in new]
    for name in new:
        if name not in old:
            same = next((gone for gone in removed if old[gone] == new[name]), None)
            if same is None:
                added.append(name)
            else:
                removed.remove(same)
                renamed.append(name)
    edited = [name for name in old if name in new and old[name] != new[name]]
    kinds = {"added": added, "removed": removed, "edited": edited, "renamed": renamed}
    changes = [
        f"{len(names)} {'file was' if len(names) == 1 else 'files were'} {kind} ({_some(names)})"
        for kind, names in kinds.items()
        if names
    ]
    return ", ".join(changes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def first_difference_at(old: Iterable[bytes], new: Iterable[bytes]) -> tuple[int, int]:
    """First difference of two texts, each in chunks: offset in bytes, and line, counted from 1."""
    offset, line = 0, 1
    left, right = iter(filter(None, old)), iter(filter(None, new))
    a = b = b""
    while True:
        a, b = a or next(left, b""), b or next(right, b"")
        n = min(len(a), len(b))
        differ = np.frombuffer(a, np.uint8, n) != np.frombuffer(b, np.uint8, n) if n else np.zeros(0, bool)
        if n == 0 or differ.any():
            same = int(differ.argmax()) if n else 0
            return offset + same, line + a[:same].count(b"\n")
        offset, line, a, b = offset + n, line + a[:n].count(b"\n"), a[n:], b[n:]
