"""How reading a text reports progress and notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done, and the bytes in total."""
Notice = Callable[[str], None]
"""Called with a sentence for the user."""


def silent(*_: Any) -> None:
    pass


class ProgressMeter:
    """Counts bytes towards a progress display."""

    def __init__(self, progress: Progress, doing: str, total: int) -> None:
        self._progress, self._doing, self._total, self._done = progress, doing, total, 0

    def add(self, n: int) -> None:
        # A compressed file gives more bytes than its size on the disk.
        self._done = min(self._done + n, self._total)
        self._progress(self._doing, self._done, self._total)
