"""Compressed files and zip archives, recognized by their first bytes and read through."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from groundling.escape import quoted

_NO_TEXTS = ("[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF")  # in Word, EPUB and program files


class NotText(ValueError):
    """A file that holds no text to train on. The message says what it is, and how to get text out of it."""

    def __init__(self, message: str, what: str) -> None:
        super().__init__(message)
        self.what = what
        """What it is, in a word or two."""

    def __reduce__(self) -> tuple[type[NotText], tuple[str, str]]:
        return type(self), (str(self), self.what)  # it may come from another process


class NeedsExtra(NotText):
    """A file that a package which is not installed could read."""


def damage() -> tuple[type[Exception], ...]:
    """What reading a damaged compressed file raises."""
    zstd = [module.ZstdError for name in _ZSTD if (module := sys.modules.get(name))]
    return (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, *zstd)


def open_unpacked(path: Path, name: str) -> BinaryIO:
    """Open a file and read through gzip, bzip2, xz and zstd, also one inside the other. Errors call it `name`."""
    with _open(path, name) as file:
        opener = _opener(file.read(8), name)
    if opener is None:
        return path.open("rb")
    try:
        with opener(path) as unpacked:
            inner = _opener(unpacked.read(8), name)
    except OSError:
        inner = None  # an error when it is read
    except damage():
        inner = None
    return inner(opener(path)) if inner else opener(path)


def _open(path: Path, name: str) -> BinaryIO:
    try:
        return path.open("rb")
    except PermissionError:
        raise PermissionError(f"{name} cannot be read: permission denied.") from None


class _Bzip2(bz2.BZ2File):
    """Tells damage from the errors of a disk: `bz2` raises OSError for both."""

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(-1 if size is None else size)
        except OSError as error:
            if error.errno is None:
                raise zlib.error(str(error)) from None
            raise


def _opener(start: bytes, name: str) -> Callable[[Any], Any] | None:
    if start.startswith(b"\x1f\x8b"):
        return gzip.open
    if start.startswith(b"BZh") and start[4:8] in (b"1AY&", b"\x17rE8"):  # data, or none
        return _Bzip2
    if start.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return lzma.open
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        return partial(_open_zstd, name)
    return None


_ZSTD = ("compression.zstd", "backports.zstd")  # in Python from 3.14 on, and for older versions


def _open_zstd(name: str, file: Any) -> Any:
    try:
        if sys.version_info >= (3, 14):
            import compression.zstd as zstd
        else:
            import backports.zstd as zstd
        return zstd.open(file)
    except ImportError:
        pass
    raise NeedsExtra(
        f"{name} is compressed with zstd. To read it: pip install \"groundling[zstd]\", or unpack it first: "
        f"`zstd -d {quoted(name)}`.",
        "compressed with zstd",
    )  # fmt: skip


def members(path: Path, name: str) -> list[tuple[str, int, Callable[[], Any]]] | None:
    """The files in a zip archive in the order of their names, each with its size as compressed, and a function that
    opens it. None if it is no archive of files, but a document, a program or a model."""
    with _open(path, name) as file:
        if not file.read(4).startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            inside = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    except (zipfile.BadZipFile, UnicodeDecodeError):
        raise OSError(f"{name} is damaged: its list of files is incomplete or wrong.") from None
    except NotImplementedError:
        raise _unknown_packing(name) from None
    if any(info.filename in _NO_TEXTS or info.filename.endswith("/data.pkl") for info in inside):
        return None
    if any(info.flag_bits & 1 for info in inside):
        raise NotText(f"{name} is an encrypted zip archive. Unpack it first: `unzip {quoted(name)}`.", "encrypted zip")
    return [
        (info.filename, max(1, info.compress_size) if info.file_size else 0, partial(_open_member, path, info, name))
        for info in inside
    ]


def _open_member(path: Path, info: zipfile.ZipInfo, name: str) -> Any:
    with zipfile.ZipFile(path) as archive:  # the member keeps the file open until it is closed itself
        try:
            return archive.open(info)
        except NotImplementedError:
            raise _unknown_packing(name) from None


def _unknown_packing(name: str) -> OSError:
    return OSError(f"{name} is packed in a way that cannot be read here. Unpack it first: `unzip {quoted(name)}`.")
