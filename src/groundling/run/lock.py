"""Before a run is trained: its places can be written, and only this process trains it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from filelock import Timeout

from groundling import storage
from groundling.data.progress import silent
from groundling.escape import printable
from groundling.training.clock import local_time

LOCK = ".lock"
"""The file that the training process locks."""


class Obstacle(ValueError):
    """A run that this process cannot train."""


def check_places(folder: Path, notice: Callable[[str], None]) -> None:
    """Before the work: raise OSError with a sentence if nothing can be written in `folder`, of runs or of a run, or in
    the cache. `notice` gets sentences about what their disks cannot do."""
    cache = storage.cache_folder()
    storage.check_writable(folder, "--out or GROUNDLING_RUNS", notice)
    home = next(path for path in (folder, *folder.parents) if path.exists())
    same_disk = cache.is_dir() and cache.stat().st_dev == home.stat().st_dev
    storage.check_writable(cache, "the environment variable GROUNDLING_CACHE", silent if same_disk else notice)


def lock(folder: Path, stack: ExitStack) -> None:
    """Lock the run until `stack` closes or the process ends, in whatever way.

    Where the disk cannot lock files, `holder.json` of a process that lives, or is on another machine, is the lock.
    Raises Obstacle, with the pid of the other process, if the run is locked.
    """
    holder = folder / "holder.json"
    try:
        has_lock = stack.enter_context(storage.locked(folder / LOCK, timeout=0))
    except Timeout:
        raise _taken(folder, _description(holder)) from None
    if not has_lock and holder.exists() and (who := _description(holder)):
        raise _taken(folder, who, f" If it is gone, delete {holder}.")
    since = local_time().isoformat(timespec="seconds")
    storage.write_json(holder, {"pid": os.getpid(), "host": platform.node(), "since": since})
    stack.callback(storage.remove_file, holder)  # a killed process leaves it; the next one replaces it


def _taken(folder: Path, who: str, otherwise: str = "") -> Obstacle:
    return Obstacle(
        f"The run {folder.name} is being trained by another process{who}. Wait for it or stop it.{otherwise}"
    )


def _description(holder: Path) -> str:
    """Which process holds the lock, if holder.json says so."""
    for _ in range(20):  # it writes the file right after taking the lock
        with suppress(OSError, ValueError, KeyError, TypeError):
            value = storage.read_json(holder)
            pid, host, since = int(value["pid"]), printable(str(value["host"])), printable(str(value["since"]))
            if host != platform.node() or psutil.pid_exists(pid):
                return f" (pid {pid} on {host}, since {since.replace('T', ' ')})"
        time.sleep(0.05)
    return ""
