"""Runs that train: each a process of its own, started, found, paused and resumed.

A run belongs to no studio. Whoever holds the lock of a run's folder trains it, so runs that were started in a terminal
are found as well, and one that was started here goes on when the studio ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from groundling.run.lock import LOCK

OUTPUT = "output.log"
"""What the processes of a run said, in its folder."""

_PAUSED = (128 + signal.SIGINT, -signal.SIGINT)  # as a run ends that was asked to once, or twice
_FRESH = 2.0  # seconds for which it is remembered who trains what: to look takes some milliseconds a process


class Processes:
    """The training processes of this machine that this user may see."""

    def __init__(self) -> None:
        self._started: dict[Path, subprocess.Popen[bytes]] = {}
        self._found: dict[Path, psutil.Process] = {}
        self._looked = -_FRESH

    def start(self, folder: Path, verb: Sequence[str]) -> None:
        """Let `python -m groundling` run `verb`, which trains the run in `folder`; it goes on without this process."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / OUTPUT).open("ab") as output:
            self._started[folder] = subprocess.Popen(
                [sys.executable, "-P", "-m", "groundling", *verb],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output,
                # A Ctrl-C that ends the studio is not for it. (0x200 is Windows's CREATE_NEW_PROCESS_GROUP.)
                start_new_session=True, creationflags=0x200 if os.name == "nt" else 0,
            )  # fmt: skip

    def training(self, folder: Path) -> psutil.Process | None:
        """The process that trains the run in `folder`, or is about to; None if there is none."""
        started = self._started.get(folder)
        if started is not None and started.poll() is None:
            if folder not in self._found or self._found[folder].pid != started.pid:
                self._found[folder] = psutil.Process(started.pid)
            return self._found[folder]
        if time.monotonic() - self._looked > _FRESH:
            self._look()
        process = self._found.get(folder)
        return process if process is not None and process.is_running() else None

    def all_started(self) -> dict[Path, int]:
        """Those that were started here and are training: the run's folder, and the process's number."""
        return {folder: process.pid for folder, process in self._started.items() if process.poll() is None}

    def ended(self, folder: Path) -> bool:
        """Whether it was started here, and is not training any more."""
        started = self._started.get(folder)
        return started is not None and started.poll() is not None

    def pause(self, folder: Path) -> None:
        """Ask for a stop, as Ctrl-C does: the step is finished and everything is saved. Asked twice, it quits at once.

        Raises ValueError if nothing trains that run.
        """
        process = self.training(folder)
        if process is None:
            raise ValueError(f"The run {folder.name} is not being trained now.")
        process.send_signal(signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGINT)  # type: ignore[attr-defined]

    def failure(self, folder: Path) -> str | None:
        """The last line that the process said if it was started here and failed; None if it did not."""
        started = self._started.get(folder)
        if started is None or (status := started.poll()) is None or status in (0, *_PAUSED):
            return None
        lines = said(folder)
        return lines[-1].removeprefix("groundling: ") if lines else f"It ended with status {status}."

    def _look(self) -> None:
        """Find who holds the lock of a run. A process that was known stays the same object: it measures its load."""
        known = {process.pid: process for process in self._found.values()}
        self._found = {}
        for process in psutil.process_iter(["name"]):
            name = (process.info["name"] or "").lower()
            if "python" not in name and "groundling" not in name:
                continue
            try:
                for file in process.open_files():
                    if Path(file.path).name == LOCK:
                        self._found[Path(file.path).parent] = known.get(process.pid, process)
            except (psutil.Error, OSError):
                continue  # another user's, or gone meanwhile
        self._looked = time.monotonic()


def said(folder: Path, most: int = 20) -> list[str]:
    """The last lines of what the processes of a run said, without what is for terminals."""
    try:
        with (folder / OUTPUT).open("rb") as file:
            file.seek(max(0, (folder / OUTPUT).stat().st_size - 20_000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-most:]
