"""Disk errors: retry those that may pass, and turn the rest into messages that say what to do."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WAITS = (1.0, 2.0, 4.0)
"""Seconds to wait before each retry after a disk error."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAY_PASS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT}
if os.name == "nt":
    _MAY_PASS.add(errno.EACCES)  # a virus scanner may hold a new file for a moment


def cache_folder() -> Path:
    """Folder for downloads, tokens and measurements: `GROUNDLING_CACHE`, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("GROUNDLING_CACHE") or platformdirs.user_cache_dir("groundling", appauthor=False))


def retry_io(path: Path, n_bytes: int, action: Callable[[], None]) -> None:
    """Call `action`, which writes `n_bytes` to `path`. Retry it after 1, 2 and 4 seconds if the error may pass.

    Raises OSError that says what space is needed, what is free and where, and what to do.
    """
    for wait in (*WAITS, None):
        try:
            action()
            return
        except OSError as error:
            if wait is None or error.errno not in _MAY_PASS:
                raise _readable(path, n_bytes, error) from None
            time.sleep(wait)


@contextmanager
def readable_errors(path: Path, n_bytes: int) -> Iterator[None]:
    """Turn errors of a full or read-only disk, while writing about `n_bytes` to `path`, into readable ones."""
    try:
        yield
    except OSError as error:
        if error.errno in {*_FULL, errno.EROFS}:
            raise _readable(path, n_bytes, error) from None
        raise


def _readable(path: Path, n_bytes: int, error: OSError) -> OSError:
    """The same error with a message that says what could not be written, what space it needs, and what to do."""
    home = next(folder for folder in path.absolute().parents if folder.exists())
    if error.errno in _FULL:
        free = "" if error.errno == errno.EDQUOT else f", and {in_bytes(free_bytes(home))} are free"
        advice = (
            f"It needs {in_bytes(n_bytes)}{free}. Free some space on the disk of {home}: delete runs or checkpoints "
            f"that you do not need, or empty {cache_folder()}."
        )
    else:
        advice = f"Check that the disk of {home} is healthy and writable."
    reason = (error.strerror or str(error)).rstrip(".")
    reason = reason[:1].lower() + reason[1:]  # it may quote a path
    readable = OSError(
        f"{path} cannot be written: {reason}. {advice} What was saved before is intact. Run the same command again to "
        "resume."
    )
    readable.errno = error.errno
    return readable


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def in_bytes(n: int) -> str:
    """Rounded, in a unit that suits it, such as `1.5 MB`."""
    return f"{n / 1e3:,.1f} kB" if n < 1e6 else f"{n / 1e6:,.1f} MB" if n < 1e9 else f"{n / 1e9:,.1f} GB"
