"""Read a file of text: its bytes unpacked, its characters decoded strictly.

Text must be valid UTF-8, or UTF-16 or UTF-32 with a byte-order mark. Anything else is an error with file, line and
offset, never repaired silently: the model would learn a wrong character and generate it.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from groundling.data.compression import NotText, damage, open_unpacked
from groundling.data.progress import Notice, silent
from groundling.escape import quoted

CHUNK = 4 * 2**20  # bytes read at once: memory does not grow with the corpus
_MOST_UNPACKED = 200  # times; text compresses to a tenth at best, a file made to fill a disk to a thousandth
_SNIFF = 8192  # a NUL byte this early means that the file is not UTF-8 text

BOMS = (
    (codecs.BOM_UTF8, "utf-8", "a UTF-8 byte-order mark, which is dropped"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32 text"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32 text"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16 text"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16 text"),
)


@dataclass(frozen=True)
class TextFile:
    """A file that holds one document or several."""

    name: str
    """As errors and notices show it."""
    short: str
    """Its path below the folder that was given, or its file name."""
    open: Callable[[], BinaryIO]
    """Opens its bytes, uncompressed."""
    size: int
    """Bytes on the disk, for progress only: a compressed file counts compressed."""
    format: str = "text"
    """How documents are read from it; see data/formats.py and data/documents.py."""
    on_read: Callable[[bytes], None] | None = None
    """Gets the SHA-256 of the bytes when `read_bytes` has read them all."""
    start: int = 0
    stop: int | None = None
    """The bytes to read, if this is one of several parts of a file: see data/shards/plan.py."""

    @property
    def is_part(self) -> bool:
        return self.start > 0 or self.stop is not None


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text. Bytes of a name that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def file_at(path: Path, name: str, short: str) -> TextFile:
    return TextFile(name, short, partial(open_unpacked, path, name), path.stat().st_size)


def read_bytes(file: TextFile) -> Iterator[bytes]:
    """The file's bytes in chunks. Raises OSError with a sentence if they cannot all be read."""
    n_bytes, digest = 0, hashlib.sha256()
    try:
        with file.open() as opened:
            if file.start:
                opened.seek(file.start)
            while chunk := opened.read(_until_next(file, file.start + n_bytes)):
                n_bytes += len(chunk)
                if n_bytes > _MOST_UNPACKED * max(file.size, 2**20):
                    raise OSError(
                        f"{file.name} grows to more than {_MOST_UNPACKED} times its size when unpacked, which no "
                        "text does. If you do want to read it, unpack it first."
                    )
                if file.on_read:
                    digest.update(chunk)
                yield chunk
    except damage() as error:
        raise OSError(f"{file.name} is damaged: its compressed data is incomplete or wrong.") from error
    if file.on_read:
        file.on_read(digest.digest())


def _until_next(file: TextFile, offset: int) -> int:
    """Bytes to read from `offset`: those of a part end at the same places as those of the whole file."""
    n_bytes = CHUNK - offset % CHUNK
    return n_bytes if file.stop is None else min(n_bytes, file.stop - offset)


def read_text(file: TextFile, notice: Notice = silent, progress: Callable[[int], None] = silent) -> Iterator[str]:
    """The file's text in chunks, decoded strictly. Line ends stay as they are.

    `progress` gets the number of bytes of each chunk, after the chunk was used.
    Raises ValueError with file, line and offset of the first byte that is not UTF-8.
    """
    decoder: codecs.IncrementalDecoder | None = None
    offset, line = 0, 1  # of the next byte to decode
    for chunk in itertools.chain(read_bytes(file), [b""]):  # the empty one is the end
        n_bytes = len(chunk)
        if decoder is None:
            encoding, skip = ("utf-8", 0) if file.start else _detect(file, chunk, notice)
            decoder = codecs.getincrementaldecoder(encoding)()
            chunk, offset = chunk[skip:], skip
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=n_bytes == 0)
        except UnicodeDecodeError as error:
            raise _undecodable(file, error, encoding, offset - pending, line) from None
        if n_bytes:
            yield text
            progress(n_bytes)
        offset += len(chunk)
        # NumPy counts bytes many times faster than Python.
        n_lines = np.count_nonzero(np.frombuffer(chunk, np.uint8) == 10) if encoding == "utf-8" else text.count("\n")
        line += int(n_lines)


def _detect(file: TextFile, start: bytes, notice: Notice) -> tuple[str, int]:
    """The encoding, and the length of the byte-order mark to skip."""
    for bom, encoding, what in BOMS:
        if start.startswith(bom):
            notice(f"{file.name} begins with {what}." if encoding == "utf-8" else f"{file.name} is {what}.")
            return encoding, len(bom)
    head = start[:_SNIFF]
    if b"\0" in head:
        fewer, more = sorted((head[0::2].count(0), head[1::2].count(0)))
        if len(head) > 3 and more > 0.35 * len(head) > 2 * fewer:
            raise NotText(
                f"{file.name} looks like UTF-16 text without a byte-order mark. Convert it to UTF-8 first: "
                f"`iconv -f UTF-16{'LE' if head[0] else 'BE'} -t UTF-8 {quoted(file.name)}`.",
                "UTF-16 without a byte-order mark",
            )
        if head.count(0) <= min(len(head) // 4, 2 + len(head) // 1000) and _is_utf8(head):
            offset = head.index(0)
            raise NotText(
                f"{file.name} has a NUL byte in line {head.count(10, 0, offset) + 1}, at offset {offset}: it is binary "
                f"or damaged. To remove such bytes: `tr -d '\\000' < {quoted(file.name)} > clean.txt`.",
                "with NUL bytes",
            )
        raise NotText(f"{file.name} is a binary file, not text.", "binary")
    return "utf-8", 0


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def decoded_start(file: TextFile, head: bytes) -> str:
    """The text of a file's first bytes. Raises NotText if it is binary."""
    encoding, skip = _detect(file, head, silent)
    return head[skip:].decode(encoding, "ignore")


def _undecodable(file: TextFile, error: UnicodeDecodeError, encoding: str, base: int, line: int) -> ValueError:
    line += error.object[: error.start].decode(encoding).count("\n")
    byte = error.object[error.start]
    return ValueError(
        f"{file.name} is not valid {encoding.upper()}: byte 0x{byte:02X} in line {line}, at offset "
        f"{base + error.start}. Convert the file to UTF-8, or fix that byte."
    )
