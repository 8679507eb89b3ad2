"""How reading a text reports progress and notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many bytes."""
Notice = Callable[[str], None]
"""Told a sentence that the user should see."""


def silent(*_: Any) -> None:
    pass


def once(notice: Notice) -> Notice:
    """The same, but each sentence a single time."""
    said = set[str]()

    def tell(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            notice(sentence)

    return tell


class ProgressMeter:
    """Counts bytes towards a progress display."""

    def __init__(self, progress: Progress, doing: str, total: int) -> None:
        self._progress, self._doing, self._total, self._done = progress, doing, total, 0

    def add(self, n: int) -> None:
        # A compressed file gives more bytes than lie on the disk.
        self._done = min(self._done + n, self._total)
        self._progress(self._doing, self._done, self._total)
