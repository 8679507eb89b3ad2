"""The lock on a run's folder: only one process trains it at a time."""

from __future__ import annotations

import os
import platform
import time
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from groundling import storage
from groundling.escape import printable

LOCK = ".lock"
"""The file that the training process locks."""


def lock(folder: Path, stack: ExitStack) -> None:
    """Lock the run until `stack` closes or the process ends, in whatever way.

    Raises ValueError, with the pid of the other process, if the run is locked.
    """
    holder = folder / "holder.json"
    try:
        stack.enter_context(FileLock(folder / LOCK).acquire(timeout=0))
    except Timeout:
        raise ValueError(
            f"The run {folder.name} is being trained by another process{_description(holder)}. Wait for it or stop it."
        ) from None
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    storage.write_json(holder, {"pid": os.getpid(), "host": platform.node(), "since": since})
    stack.callback(storage.remove_file, holder)  # a killed process leaves it; the next one replaces it


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
