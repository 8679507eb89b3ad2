"""The lock on a run's folder: one process at a time trains it."""

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
"""The file that the training process holds."""


def lock(folder: Path, stack: ExitStack) -> None:
    """Lock the run until `stack` closes. The lock ends with the process, however that ends.

    Raises ValueError that names the process that holds it.
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
    stack.callback(storage.remove_file, holder)  # if a killed process leaves it, the next one replaces it


def _description(holder: Path) -> str:
    """Who holds the lock, as far as it has written that down."""
    for _ in range(20):  # it may have got the lock a moment ago
        with suppress(OSError, ValueError, KeyError, TypeError):
            value = storage.read_json(holder)
            pid, host, since = (
                int(value["pid"]),
                printable(str(value["host"])),
                printable(str(value["since"])),
            )
            if host != platform.node() or psutil.pid_exists(pid):
                return f" (pid {pid} on {host}, since {since.replace('T', ' ')})"
        time.sleep(0.05)
    return ""
