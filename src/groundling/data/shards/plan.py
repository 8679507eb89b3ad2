"""Cut a text into shards, the units of work of several processes.

A shard is consecutive files, or a part of one large file. A part of JSON Lines starts with a line, one of Parquet with
a row group. A part of a plain text starts before a space or line break after a letter or digit of ASCII, where no token
and no document separator can be. Other files are not cut. The shards depend on the files alone, not on how many
processes there are.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from groundling.data.documents import row_groups
from groundling.data.files import BOMS, TextFile
from groundling.data.fingerprint import refuse_edited
from groundling.data.formats import damaged_parquet, parquet_file
from groundling.data.shards.kept import Kept
from groundling.data.sources import Source

SHARD = 16 * 2**20  # bytes, at least
_MOST_SHARDS = 4096
_MOST_FILES = 4096  # in a shard
_SEARCHED = 2**20  # bytes searched at a time for a place to cut
_MOST_SEARCHED = 64  # times
_BORDER = re.compile(rb"[A-Za-z0-9](?=[ \n])")

Stamp = tuple[int, int, int]
"""Inode, size, and time of the last change of a file."""


@dataclass(frozen=True)
class Shard:
    """Files of a text, counted from its file `first`, or a part of one."""

    first: int
    files: tuple[TextFile, ...]
    stamp: Stamp | None = None
    """Of the file that this is a part of, when it was cut."""
    kept: Kept | None = None
    """Which of its documents are read, if not all."""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def name(self) -> str:
        """It says which part of the text this is, so that what was made from it is found again."""
        file, last = self.files[0], self.first + len(self.files) - 1
        if self.stamp is None:
            return f"{self.first:06}-{last:06}"
        return f"{self.first:06}-{file.start:012x}-{file.stop or 0:x}-{'-'.join(f'{each:x}' for each in self.stamp)}"

    def check(self, name: str) -> None:
        """Raise ValueError if the file was edited since it was cut. `name` is the text's."""
        if self.stamp is not None and _stamp_of(self.files[0]) != self.stamp:
            refuse_edited(name)


def shards_of(source: Source, cut_texts: bool = True) -> list[Shard]:
    """All of `source`, in order. Plain texts are not cut without `cut_texts`, and not if copies are left out."""
    size = max(SHARD, source.size // _MOST_SHARDS)
    cut_texts = cut_texts and source.kept is None
    shards, first, room = list[Shard](), 0, size  # from file `first` on, the shard has room for so many bytes

    def close(stop: int) -> None:
        nonlocal first, room
        if stop > first:
            shards.append(Shard(first, source.files[first:stop]))
        first, room = stop, size

    for number, file in enumerate(source.files):
        if file.size > 1.5 * size and (parts := _parts(number, file, size, source, cut_texts)):
            close(number)
            shards += parts
            first = number + 1
            continue
        room -= file.size
        if room <= 0 or number - first == _MOST_FILES:
            close(number + 1)
    close(len(source.files))
    if source.kept is not None:
        return [dataclasses.replace(shard, kept=kept) for shard, kept in zip(shards, source.kept, strict=True)]
    return shards


def _parts(number: int, file: TextFile, size: int, source: Source, cut_texts: bool) -> list[Shard]:
    """The parts of a file; none if it cannot be cut."""
    separator = source.reading.document_separator.encode()
    finders: dict[str, Callable[[io.BufferedReader, int], int | None]] = {"jsonl": _line_start}
    if file.format == "parquet":
        finders["parquet"] = partial(_row_group, _row_groups(file))
    if cut_texts:
        finders["text"] = partial(_word_end, separator=separator)
    if (find := finders.get(file.format)) is None:
        return []
    with file.open() as opened:
        if not isinstance(opened, io.BufferedReader) or _other_encoding(opened):
            return []
        stamp, n, cuts = _stamp(opened), round(file.size / size), [0]
        for wanted in (i * file.size // n for i in range(1, n)):
            place = find(opened, wanted) if wanted > cuts[-1] else None
            if place is not None and place < file.size:
                cuts.append(place)
    if len(cuts) == 1:
        return []
    stops = [*cuts[1:], None]
    return [
        Shard(number, (dataclasses.replace(file, start=a, stop=b, size=(file.size if b is None else b) - a),), stamp)
        for a, b in zip(cuts, stops, strict=True)
    ]


def _other_encoding(opened: io.BufferedReader) -> bool:
    start = opened.read(4)
    return any(start.startswith(bom) for bom, encoding, _ in BOMS if encoding != "utf-8")


def _pieces(opened: io.BufferedReader, place: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Pieces of a file from `place` on, with their offsets, and with `overlap` bytes more at both ends."""
    for start in range(max(0, place - overlap), place + _SEARCHED * _MOST_SEARCHED, _SEARCHED):
        opened.seek(start)
        piece = opened.read(_SEARCHED + 2 * overlap)
        if len(piece) <= overlap:
            return
        yield start, piece


def _line_start(opened: io.BufferedReader, place: int) -> int | None:
    for start, piece in _pieces(opened, place, 0):
        if (found := piece.find(b"\n")) >= 0:
            return start + found + 1
    return None


def _row_group(places: list[int], _: io.BufferedReader, place: int) -> int | None:
    return next((each for each in places if each >= place), None)


def _row_groups(file: TextFile) -> list[int]:
    """Where row groups start; none if their order is another one than in the file."""
    with damaged_parquet(file):
        places = row_groups(parquet_file(file))
    return places if places == sorted(places) else []


def _word_end(opened: io.BufferedReader, place: int, separator: bytes) -> int | None:
    """Where a word ends, and no separator is near: neither across that place, nor so that it takes a line end there."""
    margin = len(separator) + 2
    for start, piece in _pieces(opened, place, margin):
        for match in _BORDER.finditer(piece, margin, len(piece) - margin):
            around = piece[match.end() - margin : match.end() + margin]
            if not separator or separator not in around:
                return start + match.end()
    return None


def _stamp(opened: io.BufferedReader) -> Stamp:
    status = os.fstat(opened.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _stamp_of(file: TextFile) -> Stamp | None:
    with file.open() as opened:
        return _stamp(opened) if isinstance(opened, io.BufferedReader) else None
