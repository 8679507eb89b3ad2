"""Crash-safe files and folders: data and JSON come in, files that are complete or absent go out.

A folder is written under a temporary name. All its files are flushed to the disk (fsync), then a manifest with the
hash of each file is written, and then the folder is renamed, which the file system does atomically. So a folder under
its real name is complete, and `verify` proves it. Single files are replaced in the same way.

Every change to the disk is a method of `disk`. Tests replace it by one that kills the process at operation k, fails
there, or records the operations to replay them as after a power cut.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil

from groundling import config
from groundling.storage import safe_read
from groundling.storage.operations import Disk
from groundling.storage.retry import UNSUPPORTED, cache_folder, free_bytes, in_bytes, locked, readable_errors, retry_io

__all__ = [
    "FORMAT", "MANIFEST", "Disk", "append_json", "cache_folder", "check_writable", "disk", "file_record",
    "file_records", "free_bytes", "in_bytes", "locked", "make_folder", "new_folder", "note_verified", "output_file",
    "read_checksummed", "read_json", "read_json_lines", "read_manifest", "readable_errors", "remove_file",
    "remove_folder", "remove_temporary", "retry_io", "sha256", "verify", "verify_once", "write_checksummed",
    "write_file", "write_json",
]  # fmt: skip

MANIFEST = "manifest.json"
FORMAT = 1
_FEW = 16  # files that are hashed one after another
_TEMPORARY = ".tmp-"


disk = Disk()


def check_writable(folder: Path, setting: str, notice: Callable[[str], None] = lambda _: None) -> None:
    """Try to make `folder` and to write in it, before long work whose result could not be saved. Leaves nothing there.

    Raises OSError with a sentence that says why that fails, and names `setting`, which chooses another place. `notice`
    gets a sentence about what the disk cannot do.
    """
    missing = list(takewhile(lambda path: not os.path.lexists(path), (folder, *folder.parents)))
    make_folder(folder, setting)
    probe = folder / f"{_TEMPORARY}probe-{os.getpid()}"
    with readable_errors(folder, 4096, setting):
        with _renamed_to(probe) as temporary:
            disk.make_folder(temporary)
        can_sync = _sync(folder)
        with locked(probe / ".lock") as can_lock:
            pass
    _delete(probe)
    for path in missing:
        with suppress(OSError):  # it is in use by now
            disk.delete(path)
    if not can_sync:
        notice(
            f"The disk of {folder} cannot flush a folder (some network disks cannot). A killed run resumes as always, "
            "but a power cut may lose the newest checkpoint."
        )
    if not can_lock:
        notice(f"The disk of {folder} cannot lock files. Do not train the same run from two machines.")


def output_file(option: str, path: str | os.PathLike[str]) -> Path:
    """`config.output_file`, and a check that a file can be written there."""
    file = config.output_file(option, path)
    check_writable(file.absolute().parent, option)
    return file


def _sync(path: Path) -> bool:
    """Flush a file or folder to the disk. False for a folder on a disk that cannot do that."""
    try:
        disk.sync(path)
    except OSError as error:
        if error.errno not in UNSUPPORTED or not path.is_dir():
            raise
        return False
    return True


def make_folder(path: Path, setting: str | None = None) -> None:
    """Make a folder and its missing parents, so that they survive a power cut. `setting`: see `readable_errors`."""
    if os.path.isdir(path):  # pathlib's own raises OSError for a name that is too long
        return
    make_folder(path.parent, setting)

    def make() -> None:
        with suppress(FileExistsError):  # made by another process, or by the previous try
            disk.make_folder(path)
        _sync(path.parent)

    retry_io(path, 4096, make, setting)


@contextmanager
def new_folder(
    path: Path, about: dict[str, Any] | None = None, records: dict[str, Any] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder to fill. On a clean exit it becomes `path`, on an exception it is deleted.

    `about` goes into the manifest, beside the files' hashes. A folder in it has a manifest of its own. Files with
    `records`, from another folder's manifest or from who wrote them, are not hashed again. Raises FileExistsError if
    `path` exists: it is never overwritten.
    """
    if path.exists():
        raise FileExistsError(f"{path} already exists. Saved data is never overwritten.")
    make_folder(path.parent)
    with _renamed_to(path) as temporary:
        disk.make_folder(temporary)
        yield temporary
        files = sorted(file for file in temporary.iterdir() if not file.is_dir())
        known = records or {}
        hashes = {file.name: known.get(file.name) or file_record(file) for file in files}
        for file in files:
            _sync(file)
        disk.write(temporary / MANIFEST, _checksummed({"format": FORMAT, "about": about or {}, "files": hashes}))
        _sync(temporary / MANIFEST)


def write_file(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` (text as UTF-8) atomically: a reader sees the old file or the new one."""
    data = content.encode() if isinstance(content, str) else content

    def replace() -> None:
        with _renamed_to(path) as temporary:
            disk.write(temporary, data)

    retry_io(path, len(data), replace)


@contextmanager
def _renamed_to(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On a clean exit it is renamed to `path`, on an exception it is deleted."""
    temporary = _temporary(path)
    _delete(temporary)
    try:
        yield temporary
        _sync(temporary)
        disk.rename(temporary, path)
        _sync(path.parent)
    except BaseException:
        _delete(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_checksummed(path: Path, value: dict[str, Any]) -> None:
    """Like `write_json`, with one more entry, `sha256`: the hash of all others, to detect any damage."""
    write_file(path, _checksummed(value))


def _checksummed(value: dict[str, Any]) -> bytes:
    body = json.dumps(value, indent=1)
    return json.dumps(value | {"sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1).encode() + b"\n"


def read_checksummed(path: Path, largest: int = safe_read.LARGEST_JSON) -> dict[str, Any]:
    """Raises ValueError that names the file if a bit differs from what `write_checksummed` wrote, but for CRLF."""
    value = read_json(path, largest)
    if isinstance(value, dict):
        value.pop("sha256", None)
        if safe_read.unix_lines(path, largest) == _checksummed(value):
            return value
    raise ValueError(f"{path} is damaged: its content differs from what was saved.")


def read_json(path: Path, largest: int = safe_read.LARGEST_JSON) -> Any:
    """Raises ValueError that names the file if it is not JSON or has more bytes than `largest`."""
    return safe_read.parse(safe_read.read_bytes(path, largest), str(path))


def append_json(path: Path, value: Any) -> None:
    """Add a line to a JSON Lines file. Does not flush it to the disk: if you rely on it, call `disk.sync(path)`."""
    line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    before = _size(path)
    # The next try continues where the last one was cut off.
    retry_io(path, len(line), lambda: disk.write(path, line[_size(path) - before :]))


def read_json_lines(path: Path, damaged: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file, without a last line that a crash cut short.

    Any other line that is not a JSON object is skipped, and `damaged` is called with a message that names file and
    line. Without `damaged`, this raises ValueError.
    """
    if not path.exists():
        return []
    values = []
    for number, line in safe_read.lines(path):
        place = f"line {number} of {path}"
        try:
            value = safe_read.parse(line, place) if line.strip() else {}
            if not isinstance(value, dict):
                raise ValueError(f"{place} is damaged: it is not a JSON object.")
            if value:
                values.append(value)
        except ValueError as error:
            if damaged is None:
                raise
            damaged(str(error))
    return values


def read_manifest(folder: Path) -> dict[str, Any]:
    """The `about` of `new_folder`. Raises ValueError that names the file if one is missing or has another size."""
    return dict(_manifest(folder)["about"])


def file_record(path: Path) -> dict[str, Any]:
    """The size and hash of a file, as the manifest has them."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def file_records(folder: Path) -> dict[str, Any]:
    """The size and hash of each file, from the manifest."""
    return dict(_manifest(folder)["files"])


def verify(folder: Path) -> dict[str, Any]:
    """Like `read_manifest`, but also check the hash of every file."""
    manifest = _manifest(folder)
    files = [folder / name for name in manifest["files"]]
    with ThreadPoolExecutor() as threads:  # a large text has thousands of files, and hashing leaves Python's lock
        hashes = threads.map(sha256, files) if len(files) > _FEW else map(sha256, files)
        for file, record, now in zip(files, manifest["files"].values(), hashes, strict=True):
            if now != (saved := record["sha256"]) and not safe_read.is_saved_json(file, saved):
                raise ValueError(f"{file} is damaged: its content differs from what was saved.")
    return dict(manifest["about"])


def verify_once(folder: Path) -> dict[str, Any]:
    """Like `verify`, but does not read files again that this process has hashed and that have not changed since."""
    if _hashed.get(folder) != (stamps := _stamps(folder)):
        verify(folder)
        _hashed[folder] = stamps
    return read_manifest(folder)


def note_verified(folder: Path) -> None:
    """Let `verify_once` know that all files of a folder are verified, by several processes together."""
    _hashed[folder] = _stamps(folder)


def _stamps(folder: Path) -> list[tuple[Path, int, int, int]]:
    return [(p, s.st_ino, s.st_size, s.st_mtime_ns) for p in sorted(folder.glob("*")) for s in [p.stat()]]


_hashed: dict[Path, list[tuple[Path, int, int, int]]] = {}


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} is incomplete: it has no {MANIFEST}.")
    manifest = read_checksummed(folder / MANIFEST)
    if not (
        isinstance(manifest.get("about"), dict)
        and isinstance(manifest.get("files"), dict)
        and all(isinstance(r, dict) and {"bytes", "sha256"} <= r.keys() for r in manifest["files"].values())
    ):
        raise ValueError(f"{folder / MANIFEST} is damaged: it does not list files and their hashes.")
    for name, record in manifest["files"].items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise ValueError(f"{folder} is incomplete: {name} is missing.")
        if (size := file.stat().st_size) != record["bytes"] and not safe_read.is_saved_json(file, record["sha256"]):
            raise ValueError(f"{file} is damaged: it has {size} bytes instead of {record['bytes']}.")
    return manifest


def remove_folder(folder: Path) -> None:
    """Delete a folder. Rename it first, so that a half-deleted one never looks complete."""
    temporary = _temporary(folder)
    _delete(temporary)
    try:
        disk.rename(folder, temporary)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EXDEV):
            raise
        # An overlay, as in a container, cannot rename a folder of its image.
        _delete(folder / MANIFEST)
        _delete(folder)
    _delete(temporary)


def remove_file(path: Path) -> None:
    """Delete a file if it exists."""
    if path.exists():
        disk.delete(path)
        _sync(path.parent)


def remove_temporary(parent: Path, name: str = "") -> None:
    """Delete what killed processes left half-written in `parent`: everything, or only what is called `name`."""
    for leftover in sorted(parent.glob(f"{_TEMPORARY}{glob.escape(name)}{'-' if name else ''}*")):
        pid = leftover.name.rpartition("-")[2]
        in_use = pid.isdigit() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))
        if not in_use:
            _delete(leftover)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}")


def _delete(path: Path) -> None:
    """Delete a file, or a folder with its content, if it exists. If that fails, `remove_temporary` tries it later."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for inside in sorted(path.iterdir()):
                _delete(inside)
        disk.delete(path)
