"""When the disk will not: what may pass is waited for, and the rest becomes a sentence that says what to do."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

WAITS = (1.0, 2.0, 4.0)
"""Seconds before a fault of the disk is tried again, and again."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT}
if os.name == "nt":
    _PASSING.add(errno.EACCES)  # a virus scanner that holds a new file for a moment
T = TypeVar("T")


def cache_folder() -> Path:
    """Where downloads, tokens and what was measured are kept: `GROUNDLING_CACHE`, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("GROUNDLING_CACHE") or platformdirs.user_cache_dir("groundling", appauthor=False))


def retry_io(path: Path, n_bytes: int, action: Callable[[], T]) -> T:
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
def readable_errors(path: Path, n_bytes: int) -> Iterator[None]:
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
