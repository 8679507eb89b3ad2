"""A run, read from its files as they grow. It does not matter which process trains it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from groundling.reporting.run_facts import Facts
from groundling.run.metrics_log import read_line
from groundling.run.run import Run

_CHUNK = 2**25  # bytes per read


class Tail:
    """The lines of a JSON Lines file that another process writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0
        self.lines: list[dict[str, Any]] = []

    def read(self) -> bool:
        """Read new lines. Returns whether anything changed.

        Starts over if the file was replaced: a resumed run drops the lines of steps that it repeats. Leaves an
        unfinished last line for the next call. Raises ValueError, naming the file, if a line is not an event.
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
            content = file.read(_CHUNK)
        whole, newline, _ = content.rpartition(b"\n")
        if len(content) == _CHUNK and not newline:
            raise ValueError(f"{self._path} is damaged: one line has more than {_CHUNK:,} bytes.")
        self.lines += [read_line(line, f"A line of {self._path}") for line in whole.split(b"\n") if line.strip()]
        self._offset += len(whole) + len(newline)
        return bool(whole) or replaced


class Live:
    """What the page of a run shows. `refresh` brings it up to date."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics, self._samples = Tail(folder / "metrics.jsonl"), Tail(folder / "samples.jsonl")
        self._record = 0  # when config.json was changed
        self.run = Run(folder)
        self.facts: Facts | None = None
        """None until a step or an evaluation has been logged."""
        self.version = 0
        """Increases with each change, so that a page knows whether to redraw."""

    def refresh(self) -> None:
        """Read what is new. Raises ValueError if a file is damaged."""
        try:
            record = (self.folder / "config.json").stat().st_mtime_ns
        except FileNotFoundError:
            return  # the run is just starting
        if record != self._record:
            self.run = Run(self.folder)
        grown = [self._metrics.read(), self._samples.read()]
        if record == self._record and not any(grown):
            return
        self._record = 0  # until everything is read: a damaged file raises on every call
        run = self.run
        if self.last is not None:
            samples, replies = (
                [line for line in self._samples.lines if line["event"] == kind] for kind in ("sample", "replies")
            )
            files = (run.record.to_dict(), run.config, self._metrics.lines, samples, run.result)
            self.facts = Facts(run.name, *files, replies=replies)
        self._record = record
        self.version += 1

    @property
    def last(self) -> dict[str, Any] | None:
        """The last logged step or evaluation."""
        return self._last("step", "evaluation")

    @property
    def seconds_left(self) -> float | None:
        """Remaining seconds, as logged with the last step."""
        step = self._last("step")
        return step["seconds_left"] if step else None

    def _last(self, *kinds: str) -> dict[str, Any] | None:
        return next((line for line in reversed(self._metrics.lines) if line["event"] in kinds), None)
