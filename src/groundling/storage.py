"""The one door to the disk for everything that must not be lost.

A folder is published whole or not at all: it is written under a temporary name, every file in it is
flushed to the disk (fsync), a manifest with the hash of each file is written last, and only then is
the folder renamed to its real name, which the file system does in one piece. Whoever finds the real
name therefore finds everything, and `verify` proves it. Single files are replaced in the same way.

Whatever changes the disk is an operation of `disk`. Tests put another one in its place, which ends the
process at operation k, or fails there, or records all of them to be replayed as after a power cut.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from groundling import untrusted

MANIFEST = "manifest.json"
FORMAT = 1
WAITS = (1.0, 2.0, 4.0)
"""Seconds before a fault of the disk is tried again, and again."""
_TEMPORARY = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT}
if os.name == "nt":
    _PASSING.add(errno.EACCES)  # a virus scanner that holds a new file for a moment
T = TypeVar("T")


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


def cache_folder() -> Path:
    """Where downloads, tokens and what was measured are kept: `GROUNDLING_CACHE`, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("GROUNDLING_CACHE") or platformdirs.user_cache_dir("groundling", appauthor=False))


def patiently(path: Path, n_bytes: int, action: Callable[[], T]) -> T:
    """Do what writes `n_bytes` to `path`. A fault that may pass is waited for: tried again after 1, 2 and 4 seconds.

    Raises OSError with a sentence that says what is needed, what is free and where, and what to do.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except OSError as error:
            if wait is None or error.errno not in _PASSING:
                raise _refusal(path, n_bytes, error) from None
            time.sleep(wait)
    raise AssertionError("unreachable")


@contextmanager
def explained(path: Path, n_bytes: int) -> Iterator[None]:
    """Turn the error of a full or read-only disk, met while about `n_bytes` are written to `path`, into a sentence."""
    try:
        yield
    except OSError as error:
        raise _refusal(path, n_bytes, error) if error.errno in {*_FULL, errno.EROFS} else error from None


def _refusal(path: Path, n_bytes: int, error: OSError) -> OSError:
    """The same as a sentence for the user: what could not be written, what it takes, and what to do."""
    home = next(folder for folder in path.absolute().parents if folder.exists())
    sentence = f"{path} cannot be written: {(error.strerror or str(error)).lower()}."
    if error.errno in _FULL:
        free = "" if error.errno == errno.EDQUOT else f", and {in_bytes(free_bytes(home))} are free"
        sentence += (
            f" It takes {in_bytes(n_bytes)}{free}. Make room on the disk of {home}: delete runs or checkpoints that "
            f"you do not need, or empty {cache_folder()}."
        )
    else:
        sentence += f" See whether the disk of {home} is healthy and may be written."
    refusal = OSError(f"{sentence} Whatever was saved before is as it was; the same command goes on from there.")
    refusal.errno = error.errno
    return refusal


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def in_bytes(n: int) -> str:
    """About how much, in the unit that suits it."""
    return f"{n / 1e3:,.1f} kB" if n < 1e6 else f"{n / 1e6:,.1f} MB" if n < 1e9 else f"{n / 1e9:,.1f} GB"


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, so that it is still there after a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):  # another process was faster
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
        disk.write(temporary / MANIFEST, _sealed({"format": FORMAT, "about": about or {}, "files": hashes}))
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
    patiently(path, len(data), lambda: _replace(path, data))


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


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Like `write_json`, with the hash of it all as one more entry, `sha256`, so that damage cannot go unseen."""
    write_file(path, _sealed(value))


def _sealed(value: dict[str, Any]) -> bytes:
    body = json.dumps(value, indent=1)
    return json.dumps(value | {"sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1).encode() + b"\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """Raises ValueError, naming the file, if a single bit is not as `write_sealed` wrote it."""
    value = read_json(path)
    if isinstance(value, dict):
        value.pop("sha256", None)
        if path.read_bytes() == _sealed(value):
            return value
    raise ValueError(f"{path} is damaged: its content is not what was saved.")


def read_json(path: Path, largest: int = untrusted.LARGEST_JSON) -> Any:
    """Raises ValueError, naming the file, if it is not JSON or has more bytes than `largest`."""
    return untrusted.parse(untrusted.read_bytes(path, largest), str(path))


def append_json(path: Path, value: Any) -> None:
    """Add a line to a JSON Lines file. Not flushed to the disk: whoever relies on it says `disk.sync(path)`."""
    line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    before = _size(path)
    # Tried again, it goes on where it was cut off.
    patiently(path, len(line), lambda: disk.write(path, line[_size(path) - before :]))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file; a last line that a crash cut short is left out.

    Raises ValueError, naming the file and line, if another line is not JSON.
    """
    if not path.exists():
        return []
    return [untrusted.parse(line, f"line {number} of {path}") for number, line in untrusted.lines(path) if line.strip()]


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
    manifest = read_sealed(folder / MANIFEST)
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


def sweep(parent: Path, name: str = "") -> None:
    """Delete what a killed process left half-written in `parent`, of all or of what was to be called `name`."""
    for leftover in sorted(parent.glob(f"{_TEMPORARY}{glob.escape(name)}{'-' if name else ''}*")):
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
