"""The one door to the disk for everything that must not be lost.

A folder is published whole or not at all: it is written under a temporary name, every file in it is
flushed to the disk (fsync), a manifest with the hash of each file is written last, and only then is
the folder renamed to its real name, which the file system does in one piece. Whoever finds the real
name therefore finds everything, and `verify` proves it. Single files are replaced in the same way.

Whatever changes the disk is an operation of `disk`. Tests put another one in its place, which ends the
process at operation k, or fails there, or records all of them to be replayed as after a power cut.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from groundling.storage.retry import cache_folder, free_bytes, in_bytes, readable_errors, retry_io

__all__ = [
    "FORMAT", "MANIFEST", "Disk", "append_json", "cache_folder", "disk", "free_bytes", "in_bytes", "make_folder",
    "new_folder", "read_checksummed", "read_json", "read_json_lines", "read_manifest", "readable_errors",
    "remove_file", "remove_folder", "remove_temporary", "retry_io", "sha256", "verify", "verify_once",
    "write_checksummed", "write_file", "write_json",
]  # fmt: skip

from groundling.storage import safe_read

MANIFEST = "manifest.json"
FORMAT = 1
_TEMPORARY = ".tmp-"


class Disk:
    """What can be done to the disk, one operation a method. A crash comes before, after or in the midst of one."""

    def make_folder(self, path: Path) -> None:
        path.mkdir()

    def write(self, path: Path, content: bytes) -> None:
        """Add to the end of a file, which is made if it is not there."""
        with path.open("ab") as file:
            file.write(content)

    def fill(self, path: Path, write: Callable[[Path], object]) -> None:
        """Let a library write a new file by itself, where its content in one piece would take memory twice."""
        write(path)

    def sync(self, path: Path) -> None:
        """Force a file's content, or the names in a folder, to the disk."""
        if path.is_dir() and os.name == "nt":
            return  # Windows has no way to sync a folder; its renames are journalled.
        # Windows syncs only handles that may write.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
            if hasattr(os, "posix_fadvise") and not path.is_dir():
                # Forget what memory holds of it: whoever reads it back reads the disk.
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """In one piece; a file at `new` is replaced, a folder that is not empty is not."""
        os.replace(old, new)

    def delete(self, path: Path) -> None:
        """A file, or an empty folder."""
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


disk = Disk()


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, so that it is still there after a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        retry_io(path, 4096, lambda: _make_folder(path))


def _make_folder(path: Path) -> None:
    with suppress(FileExistsError):  # made by another process, or just before the fault after which this is tried again
        disk.make_folder(path)
    disk.sync(path.parent)


@contextmanager
def new_folder(path: Path, about: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder to fill; on a clean exit it becomes `path`, on an exception it vanishes.

    `about` goes into the manifest beside the files' hashes. Raises FileExistsError if `path` exists:
    nothing that was published is ever overwritten.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already, and what is saved is never overwritten.")
    make_folder(path.parent)
    temporary = _temporary(path)
    _delete(temporary)
    try:
        disk.make_folder(temporary)
        yield temporary
        files = sorted(temporary.iterdir())
        hashes = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}
        for file in files:
            disk.sync(file)
        disk.write(temporary / MANIFEST, _checksummed({"format": FORMAT, "about": about or {}, "files": hashes}))
        disk.sync(temporary / MANIFEST)
        disk.sync(temporary)
        disk.rename(temporary, path)
        disk.sync(path.parent)
    except BaseException:
        _delete(temporary)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` (text as UTF-8) in one piece: a reader sees the old file or the new one."""
    data = content.encode() if isinstance(content, str) else content
    retry_io(path, len(data), lambda: _replace(path, data))


def _replace(path: Path, content: bytes) -> None:
    temporary = _temporary(path)
    _delete(temporary)
    try:
        disk.write(temporary, content)
        disk.sync(temporary)
        disk.rename(temporary, path)
        disk.sync(path.parent)
    except BaseException:
        _delete(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_checksummed(path: Path, value: dict[str, Any]) -> None:
    """Like `write_json`, with the hash of it all as one more entry, `sha256`, so that damage cannot go unseen."""
    write_file(path, _checksummed(value))


def _checksummed(value: dict[str, Any]) -> bytes:
    body = json.dumps(value, indent=1)
    return json.dumps(value | {"sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1).encode() + b"\n"


def read_checksummed(path: Path, largest: int = safe_read.LARGEST_JSON) -> dict[str, Any]:
    """Raises ValueError, naming the file, if a single bit is not as `write_sealed` wrote it."""
    value = read_json(path, largest)
    if isinstance(value, dict):
        value.pop("sha256", None)
        if path.read_bytes() == _checksummed(value):
            return value
    raise ValueError(f"{path} is damaged: its content is not what was saved.")


def read_json(path: Path, largest: int = safe_read.LARGEST_JSON) -> Any:
    """Raises ValueError, naming the file, if it is not JSON or has more bytes than `largest`."""
    return safe_read.parse(safe_read.read_bytes(path, largest), str(path))


def append_json(path: Path, value: Any) -> None:
    """Add a line to a JSON Lines file. Not flushed to the disk: whoever relies on it says `disk.sync(path)`."""
    line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    before = _size(path)
    # Tried again, it goes on where it was cut off.
    retry_io(path, len(line), lambda: disk.write(path, line[_size(path) - before :]))


def read_json_lines(path: Path, damaged: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file; a last line that a crash cut short is left out.

    Another line that is no JSON object is left out too if `damaged` is there to be told the sentence, which names
    file and line; else it is a ValueError.
    """
    if not path.exists():
        return []
    values = []
    for number, line in safe_read.lines(path):
        place = f"line {number} of {path}"
        try:
            value = safe_read.parse(line, place) if line.strip() else {}
            if not isinstance(value, dict):
                raise ValueError(f"{place} is damaged: it is no object.")
        except ValueError as error:
            if damaged is None:
                raise
            damaged(str(error))
            continue
        if value:
            values.append(value)
    return values


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `new_folder` was told `about` the folder, after checking that every file has its recorded size.

    Raises ValueError with a sentence that names what is missing or cut short.
    """
    return dict(_manifest(folder)["about"])


def verify(folder: Path) -> dict[str, Any]:
    """Like `read_manifest`, and also hash every file: proof that the folder is what was saved."""
    manifest = _manifest(folder)
    for name, record in manifest["files"].items():
        if sha256(folder / name) != record["sha256"]:
            raise ValueError(f"{folder / name} is damaged: its content is not what was saved.")
    return dict(manifest["about"])


def verify_once(folder: Path) -> dict[str, Any]:
    """Like `verify`, but files that this process has hashed, and nobody has touched since, are not read again."""
    stamps = [(p, s.st_ino, s.st_size, s.st_mtime_ns) for p in sorted(folder.glob("*")) for s in [p.stat()]]
    if _hashed.get(folder) != stamps:
        _hashed.pop(folder, None)
        verify(folder)
        _hashed[folder] = stamps
    return read_manifest(folder)


_hashed: dict[Path, list[tuple[Path, int, int, int]]] = {}


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} is not whole: it has no {MANIFEST}.")
    manifest = read_checksummed(folder / MANIFEST)
    if not (
        isinstance(manifest.get("about"), dict)
        and isinstance(manifest.get("files"), dict)
        and all(isinstance(r, dict) and {"bytes", "sha256"} <= r.keys() for r in manifest["files"].values())
    ):
        raise ValueError(f"{folder / MANIFEST} is damaged: it is not a list of files and their hashes.")
    for name, record in manifest["files"].items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise ValueError(f"{folder} is not whole: {name} is missing.")
        if file.stat().st_size != record["bytes"]:
            raise ValueError(f"{file} is damaged: {file.stat().st_size} bytes where {record['bytes']} were saved.")
    return manifest


def remove_folder(folder: Path) -> None:
    """Delete a published folder; under a temporary name first, so that half of it is never taken for whole."""
    doomed = _temporary(folder)
    _delete(doomed)
    try:
        disk.rename(folder, doomed)
    except FileNotFoundError:
        return
    _delete(doomed)


def remove_file(path: Path) -> None:
    """Delete a file, if it is there."""
    if path.exists():
        disk.delete(path)
        disk.sync(path.parent)


def remove_temporary(parent: Path, name: str = "") -> None:
    """Delete what killed processes left half-written in `parent`: everything, or what was to be called `name`."""
    for leftover in sorted(parent.glob(f"{_TEMPORARY}{glob.escape(name)}{'-' if name else ''}*")):
        pid = leftover.name.rpartition("-")[2]
        if not (pid.isdigit() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))):  # else it is being written
            _delete(leftover)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}")


def _delete(path: Path) -> None:
    """Delete a file, or a folder and all that is in it, if it is there. What cannot be deleted is left to `sweep`."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for inside in sorted(path.iterdir()):
                _delete(inside)
        disk.delete(path)
