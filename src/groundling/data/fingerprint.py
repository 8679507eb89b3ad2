"""Hashes of a text and its files, and how two texts differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from groundling.data.files import read_bytes
from groundling.data.progress import Progress, ProgressMeter, silent
from groundling.data.sources import Source, combined

MOST_FILES = 1000
"""A run records the names and hashes of this many, to describe a later change of the text."""
_NAMED = 3  # files to name for each kind of change


@dataclass(frozen=True)
class TextFingerprint:
    """`fingerprint` is the SHA-256 of the files' bytes and formats, without their names. `files` has name, size in
    bytes and SHA-256 of each of the first thousand."""

    fingerprint: str
    files: tuple[dict[str, Any], ...]


def fingerprint_of(source: Source, progress: Progress = silent) -> TextFingerprint:
    """Read the whole text and hash it. Raises OSError with a sentence if it cannot be read."""
    meter, digests, facts = ProgressMeter(progress, "checking", source.size), list[bytes](), list[dict[str, Any]]()
    for file in source.files:
        digest, size = hashlib.sha256(), 0
        for chunk in read_bytes(file):
            digest.update(chunk)
            size += len(chunk)
            meter.add(len(chunk))
        digests.append(digest.digest())
        if len(facts) < MOST_FILES:
            name = file.short if len(source.files) > 1 else source.name
            facts.append({"name": name[:4096], "bytes": size, "sha256": digest.hexdigest()})
    return TextFingerprint(combined(source.files, digests), tuple(facts))


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
