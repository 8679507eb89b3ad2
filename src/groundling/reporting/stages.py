"""A line for each stage of a longer work, and a bar for the one that runs."""

from __future__ import annotations

import time
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from groundling.escape import printable
from groundling.training import events

_SECONDS_BETWEEN_LINES = 15.0


class Stages:
    """A subscriber to the events of several runs, one after the other."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self.out = Console(file=file, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[left]}"),
            console=self.out, transient=True, disable=not self.out.is_terminal,
        )  # fmt: skip
        self._task, self._run, self._last = TaskID(0), "", time.perf_counter()

    def __enter__(self) -> Stages:
        self._bar.start()
        self._task = self._bar.add_task("", total=None, left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.Started():
                self._run = printable(event.run)
            case events.Step():
                total = event.elapsed + event.seconds_left
                left = f"step {event.step:,}, {event.seconds_left:.0f} s left"
                self._bar.update(self._task, description=self._run, completed=event.elapsed, total=total, left=left)
                if not self.out.is_terminal and time.perf_counter() - self._last > _SECONDS_BETWEEN_LINES:
                    self._last = time.perf_counter()
                    self.out.print(Text(f"{self._run}: {left}"))

    def say(self, sentence: str) -> None:
        """A line that stays."""
        self.out.print(Text(sentence))
