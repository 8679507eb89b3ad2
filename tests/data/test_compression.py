"""Compressed files: what is read through, and what damage is told."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from groundling.data.compression import open_unpacked
from groundling.data.files import file_at, read_text
from groundling.data.sources import find_source

TEXT = "".join(f"line {i * i}\n" for i in range(300))


def read(path: Path) -> str:
    return "".join(read_text(file_at(path, path.name, path.name)))


def compressors() -> dict[str, Callable[[bytes], bytes]]:
    found: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress,
        "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    }  # fmt: skip
    if sys.version_info < (3, 14):
        found["zstd"] = pytest.importorskip("backports.zstd").compress
    else:
        import compression.zstd

        found["zstd"] = compression.zstd.compress
    return found


def test_every_byte_that_is_cut_off_is_missed(write: Callable[..., Path]) -> None:
    for name, pack in compressors().items():
        packed = pack(TEXT.encode())
        assert read(write(name, packed)) == TEXT
        for length in (13, 20, len(packed) // 2, len(packed) - 5):
            with pytest.raises(OSError, match=rf"^{name} is damaged: its compressed data is incomplete or wrong\.$"):
                read(write(name, packed[:length]))


def test_a_changed_byte_is_found(write: Callable[..., Path]) -> None:
    for name, pack in compressors().items():
        if name in ("lzma", "zstd"):
            continue  # have no checksum
        packed = bytearray(pack(TEXT.encode()))
        for at in (30, 60, len(packed) // 2):
            changed = packed.copy()
            changed[at] ^= 255
            with pytest.raises(OSError, match=rf"^{name} is damaged: its compressed data is incomplete or wrong\.$"):
                read(write(name, bytes(changed)))


def test_streams_one_after_the_other_and_empty_ones(write: Callable[..., Path]) -> None:
    for name, pack in compressors().items():
        if name != "lzma":
            assert read(write(name, pack(b"a\n") + pack(b"b\n"))) == "a\nb\n"
        assert read(write(name, pack(b""))) == ""
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    assert read(write("zstd", skippable + compressors()["zstd"](b"a\n"))) == "a\n"
    assert read(write("twice.gz", gzip.compress(lzma.compress(b"a\n")))) == "a\n"


def test_a_name_does_not_matter(write: Callable[..., Path]) -> None:
    assert read(write("plain.gz", "plain\n")) == "plain\n"
    assert open_unpacked(write("packed.txt", gzip.compress(b"x")), "x").read() == b"x"


def test_archives_that_cannot_be_read(write: Callable[..., Path]) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", TEXT)
    packed = out.getvalue()
    with pytest.raises(OSError, match=r"cut\.zip is damaged: its list of files is incomplete or wrong\."):
        find_source(write("cut.zip", packed[:-10]))
    source = find_source(write("deflate64.zip", packed.replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x09\0")))
    with pytest.raises(OSError, match=r"deflate64\.zip is packed in a way .*`unzip \S*deflate64\.zip`"):
        list(source.documents(source.files[0]))
    with pytest.raises(ValueError, match=r"is an encrypted zip archive\. Unpack it first: `unzip"):
        find_source(write("secret.zip", packed.replace(b"\x14\0\0\0\x08\0", b"\x14\0\x01\0\x08\0")))
