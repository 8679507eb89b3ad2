"""Training processes: start, find and pause them. Each run trains in a process of its own.

The process that holds the lock of a run's folder trains that run. So the studio also finds runs started in a terminal,
and a run started in the studio continues after the studio stops.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from groundling import storage
from groundling.run.lock import LOCK

OUTPUT = "output.log"
"""What a run's processes printed to stderr, in the run's folder."""

_PAUSED = (128 + signal.SIGINT, -signal.SIGINT)  # exit status after one Ctrl-C, and after two


class Processes:
    """The training processes on this machine that this user may see."""

    def __init__(self) -> None:
        self._started: dict[Path, subprocess.Popen[bytes]] = {}
        self._known: dict[psutil.Process, psutil.Process] = {}
        """The first object for each process: it measures the CPU load between two calls."""

    def start(self, folder: Path, command: Sequence[str]) -> None:
        """Run `python -m groundling *command`, which trains the run in `folder` and goes on when this process ends."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / OUTPUT).open("ab") as output:
            self._started[folder] = subprocess.Popen(
                [sys.executable, "-P", "-m", "groundling", *command],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output,
                # So that Ctrl-C stops the studio only. (0x200 is Windows's CREATE_NEW_PROCESS_GROUP.)
                start_new_session=True, creationflags=0x200 if os.name == "nt" else 0,
            )  # fmt: skip

    def training(self, folder: Path) -> psutil.Process | None:
        """The process that trains the run in `folder`, or is about to. None if there is none."""
        pid = self.all_started().get(folder)
        process = lock_holder(folder) if pid is None else psutil.Process(pid)
        return None if process is None else self._known.setdefault(process, process)

    def all_started(self) -> dict[Path, int]:
        """Run folder and process id of every process that was started here and is still training."""
        return {folder: process.pid for folder, process in self._started.items() if process.poll() is None}

    def ended(self, folder: Path) -> bool:
        """Whether the run was started here and has ended."""
        return folder in self._started and folder not in self.all_started()

    def pause(self, folder: Path) -> None:
        """Pause a run as Ctrl-C does: it finishes its step and saves everything. A second call quits at once.

        Raises ValueError if nothing trains the run.
        """
        process = self.training(folder)
        if process is None:
            raise ValueError(f"Run {folder.name} is not training.")
        process.send_signal(signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGINT)  # type: ignore[attr-defined]

    def failure(self, folder: Path) -> str | None:
        """The last line that the process printed, if it was started here and failed. Else None."""
        started = self._started.get(folder)
        if started is None or (status := started.poll()) is None or status in (0, *_PAUSED):
            return None
        lines = last_output(folder)
        return lines[-1].removeprefix("groundling: ") if lines else f"the process exited with status {status}."


def lock_holder(folder: Path) -> psutil.Process | None:
    """The process that holds the lock of a run: `holder.json` names it, and its open files prove it."""
    try:
        process = psutil.Process(storage.read_json(folder / "holder.json")["pid"])
        files = process.open_files()
    except (psutil.Error, OSError, ValueError, TypeError, KeyError, OverflowError):
        return None  # not locked, damaged, or another user's process
    return process if any(Path(file.path) == folder / LOCK for file in files) else None


def last_output(folder: Path) -> list[str]:
    """The last 20 lines that the processes of a run printed, without blank ones."""
    try:
        with (folder / OUTPUT).open("rb") as file:
            file.seek(max(0, (folder / OUTPUT).stat().st_size - 20_000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-20:]
