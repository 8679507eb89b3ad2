"""Disk errors: retry those that may pass, and turn the rest into messages that say what to do. Locks, where a disk has
them."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WAITS = (1.0, 2.0, 4.0)
"""Seconds to wait before each retry after a disk error."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DISK = {errno.EIO, errno.EROFS, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT}
_MAY_PASS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT}
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}
"""Errors of a disk that cannot flush folders, or cannot lock files."""
if os.name == "nt":
    _MAY_PASS.add(errno.EACCES)  # a virus scanner may hold a new file for a moment


def cache_folder() -> Path:
    """Folder for downloads, tokens and measurements: `GROUNDLING_CACHE`, or the user's cache folder.

    Raises OSError if it is in the home folder and there is none.
    """
    import platformdirs

    given = os.environ.get("GROUNDLING_CACHE")
    try:
        return Path(given or platformdirs.user_cache_dir("groundling", appauthor=False)).expanduser().absolute()
    except RuntimeError:  # of pathlib and platformdirs
        raise OSError(
            f"The cache folder {given or '~/.cache'} is in your home folder, which is not known: HOME is not set, or "
            "not the path of a folder. Choose the cache folder with the environment variable GROUNDLING_CACHE."
        ) from None


def retry_io(path: Path, n_bytes: int, action: Callable[[], None], setting: str | None = None) -> None:
    """Call `action`, which writes `n_bytes` to `path`. Retry it after 1, 2 and 4 seconds if the error may pass.

    Raises OSError that says what space is needed, what is free and where, and what to do.
    """
    for wait in (*WAITS, None):
        try:
            action()
            return
        except OSError as error:
            if error.strerror is None:  # a sentence of ours, after its own retries
                raise
            if wait is None or error.errno not in _MAY_PASS:
                raise _readable(path, n_bytes, error, setting) from None
            time.sleep(wait)


@contextmanager
def readable_errors(path: Path, n_bytes: int, setting: str | None = None) -> Iterator[None]:
    """Turn errors of a full or read-only disk, while writing about `n_bytes` to `path`, into readable ones.

    With `setting`, which chooses another place, such as `--html`, nothing else is done in the block: `path` is the
    folder to write to, and every disk error is about it.
    """
    try:
        yield
    except OSError as error:
        if error.strerror is None or not (setting or error.errno in {*_FULL, errno.EROFS}):
            raise  # a sentence of ours, or an error of something that is read
        raise _readable(path, n_bytes, error, setting) from None


def _readable(path: Path, n_bytes: int, error: OSError, setting: str | None = None) -> OSError:
    """The same error with a message that says what could not be written, why, and what to do."""
    place = path.absolute()
    there = (setting and os.path.isdir(place)) or error.errno == errno.ENOTDIR  # it is about the place itself
    home = next(folder for folder in (place, *place.parents)[0 if there else 1 :] if os.path.lexists(folder))
    reason = (error.strerror or str(error)).rstrip(".")
    reason = reason[:1].lower() + reason[1:]  # it may quote a path
    if error.errno in _FULL:
        free = "" if error.errno == errno.EDQUOT else f", and {in_bytes(free_bytes(home))} are free"
        advice = (
            f"It needs {in_bytes(n_bytes)}{free}. Free some space on the disk of {home}: delete runs or checkpoints "
            f"that you do not need, or empty {cache_folder()}."
        )
    elif error.errno in _DISK:
        advice = f"Check that the disk of {home} is healthy and writable."
    else:
        advice = ""
        reason = _cause(home, error) or reason
    if setting or not advice:
        advice = f"{advice} Choose another place with {setting or _setting(path)}.".lstrip()
    if not setting and error.errno in _FULL | _DISK:  # otherwise it could never be written
        advice += " What was saved before is intact. Run the same command again to resume."
    readable = OSError(f"{path} cannot be written: {reason}. {advice}")
    readable.errno = error.errno
    return readable


def _cause(home: Path, error: OSError) -> str | None:
    """The reason in words, where the system's are too few. `home` is the folder, or its part that exists."""
    if home.is_symlink() and not home.exists():
        return f"{home} is a link to {os.path.realpath(home)}, which does not exist"
    if not home.is_dir():
        return f"{home} is a file, not a folder"
    return {
        errno.EACCES: f"you have no permission to write in {home}",
        errno.EPERM: f"the disk of {home} does not permit it",
        errno.ENOENT: f"no folder can be made in {home}",
        errno.ENAMETOOLONG: "the path or a name in it is too long",
        errno.EXDEV: f"the disk of {home} cannot rename files",
    }.get(error.errno or 0)


def _setting(path: Path) -> str:
    """What chooses the folder that `path` is in."""
    place = path.absolute()
    with suppress(OSError):
        cache = cache_folder()
        if place.is_relative_to(cache) or cache.is_relative_to(place):  # or one of its parents, to be made
            return "the environment variable GROUNDLING_CACHE"
    return "--out or GROUNDLING_RUNS"


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[bool]:
    """Hold the lock file `path` until the end of the block or of the process, in whatever way it ends.

    Yields False, without a lock, if the disk cannot lock files. Raises filelock.Timeout if another process has it for
    `timeout` seconds (-1: wait).
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        with readable_errors(path, 0, _setting(path)):
            lock.acquire(timeout)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, Timeout) or (isinstance(error, OSError) and error.errno not in UNSUPPORTED):
            raise
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def in_bytes(n: int) -> str:
    """Rounded, in a unit that suits it, such as `1.5 MB`."""
    if n < 1000:
        return f"{n} bytes"
    return f"{n / 1e3:,.1f} kB" if n < 1e6 else f"{n / 1e6:,.1f} MB" if n < 1e9 else f"{n / 1e9:,.1f} GB"
