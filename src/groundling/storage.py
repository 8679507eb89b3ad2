"""The one door to the disk for everything that must not be lost.

A folder is published whole or not at all: it is written under a temporary name, every file in it is
flushed to the disk (fsync), a manifest with the hash of each file is written last, and only then is
the folder renamed to its real name, which the file system does in one piece. Whoever finds the real
name therefore finds everything, and `verify` proves it. Single files are replaced in the same way.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from groundling import untrusted

MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"


def cache_folder() -> Path:
    """Where downloads, tokens and what was measured are kept: `GROUNDLING_CACHE`, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("GROUNDLING_CACHE") or platformdirs.user_cache_dir("groundling", appauthor=False))


@contextmanager
def new_folder(path: Path, about: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder to fill; on a clean exit it becomes `path`, on an exception it vanishes.

    `about` goes into the manifest beside the files' hashes. Raises FileExistsError if `path` exists:
    nothing that was published is ever overwritten.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already, and what is saved is never overwritten.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        files = sorted(p for p in temporary.iterdir() if p.is_file())
        manifest = {
            "about": about or {},
            "files": {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files},
        }
        for file in files:
            _sync(file)
        _write(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` (text as UTF-8) in one piece: a reader sees the old file or the new one."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}")
    try:
        _write(temporary, content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, largest: int = untrusted.LARGEST_JSON) -> Any:
    """Raises ValueError, naming the file, if it is not JSON or has more bytes than `largest`."""
    return untrusted.parse(untrusted.read_bytes(path, largest), str(path))


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


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} is not whole: it has no {MANIFEST}.")
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    if not (
        isinstance(manifest, dict)
        and isinstance(manifest.get("about"), dict)
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
    doomed = folder.with_name(f"{_TEMPORARY}{folder.name}-{os.getpid()}")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(parent: Path, name: str = "") -> None:
    """Delete what a killed process left half-written in `parent`, of all or of what was to be called `name`."""
    for leftover in parent.glob(f"{_TEMPORARY}{glob.escape(name)}{'-' if name else ''}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no way to sync a folder; its renames are journalled.
    # Windows syncs only handles that may write.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
