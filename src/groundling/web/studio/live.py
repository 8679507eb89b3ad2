"""A run as its files tell it, read on as they grow: who trains it, and where it was started, makes no difference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from groundling.reporting.run_facts import Facts
from groundling.run.metrics_log import read_line
from groundling.run.run import Run

_PIECE = 2**25  # bytes that are read at a time


class Tail:
    """The lines of a JSON Lines file that another process writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0
        self.lines: list[dict[str, Any]] = []

    def read(self) -> bool:
        """Read on; whether anything was new. A file that was replaced (a run that resumes drops what happens again) is
        read from its beginning. A line that is still being written is left for the next time.

        Raises ValueError, naming the file, if a line is no event.
        """
        try:
            file = self._path.open("rb")
        except OSError:
            return False
        with file:
            now = os.fstat(file.fileno())
            replaced = now.st_ino != self._inode or now.st_size < self._offset
            if replaced:
                self._inode, self._offset, self.lines = now.st_ino, 0, []
            elif now.st_size == self._offset:
                return False
            file.seek(self._offset)
            content = file.read(_PIECE)
        whole = content.rpartition(b"\n")
        if len(content) == _PIECE and not whole[1]:
            raise ValueError(f"{self._path} is damaged: a line of it has more than {_PIECE:,} bytes.")
        self.lines += [read_line(line, f"A line of {self._path}") for line in whole[0].split(b"\n") if line.strip()]
        self._offset += len(whole[0]) + len(whole[1])
        return bool(whole[0]) or replaced


class Live:
    """What a run's page shows, kept up to date by `refresh`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics, self._samples = Tail(folder / "metrics.jsonl"), Tail(folder / "samples.jsonl")
        self._record, self._outdated = 0, False
        self.run = Run(folder)
        self.facts: Facts | None = None
        """None until a step has been logged."""
        self.version = 0
        """Counts what was new: a page that has shown this version has nothing to do."""

    def refresh(self) -> None:
        """Read what is new. Raises ValueError if the files are damaged."""
        try:
            record = (self.folder / "config.json").stat().st_mtime_ns
        except FileNotFoundError:
            return  # it has just been started
        changed = record != self._record
        if changed:
            self._record, self.run = record, Run(self.folder)
        changed |= self._metrics.read()
        changed |= self._samples.read()
        if not changed and not self._outdated:
            return
        self._outdated = True  # until all is read: what is damaged is told each time
        if any(line["event"] in ("step", "evaluation") for line in self._metrics.lines):
            run = self.run
            samples = [line for line in self._samples.lines if line["event"] == "sample"]
            self.facts = Facts(run.name, run.record.to_dict(), run.config, self._metrics.lines, samples, run.result)
        self._outdated = False
        self.version += 1

    @property
    def last(self) -> dict[str, Any] | None:
        """The last step or evaluation that was logged."""
        lines = self._metrics.lines
        return next((line for line in reversed(lines) if line["event"] in ("step", "evaluation")), None)

    @property
    def seconds_left(self) -> float | None:
        """As the last step of this session has it."""
        lines = self._metrics.lines
        return next((line["seconds_left"] for line in reversed(lines) if line["event"] == "step"), None)
