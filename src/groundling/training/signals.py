"""Ctrl-C (SIGINT), SIGTERM and SIGHUP: the first one saves and stops, the second one ends the process at once.

This module does not import torch, so that signals are handled even while torch is still being imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_SHOW_CURSOR = b"\x1b[?25h"  # a live display hides it, and a killed process cannot restore it


class StopRequest:
    """A context manager. After the first signal, `stop()` is true.

    The second signal gets the system's default action, which ends the process at once, even in the middle of a long
    computation. That loses no saved work, since files are replaced atomically. If SIGHUP is ignored, as under `nohup`,
    it stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        self.signal = number
        say("Saving and stopping. Press Ctrl-C again to quit without saving.")

    def __enter__(self) -> StopRequest:
        self._before = _handled_by(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _put_back(self._before)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A context manager for work with nothing to save: the first signal ends the process with exit code 128 + signal.

    It does not raise an exception, since libraries often catch one during their import and report themselves broken.
    """
    before = _handled_by(_end)
    try:
        yield
    finally:
        _put_back(before)


def _end(number: int, frame: FrameType | None) -> None:
    say("groundling: stopped. Nothing that was saved is lost; run the same command again to continue.")
    with suppress(Exception):  # another thread may be using it
        sys.stdout.flush()
    os._exit(128 + number)


def say(sentence: str) -> None:
    """Write to the file descriptor, since a display may hold the lock of `sys.stderr`. The terminal may be gone."""
    with suppress(OSError):
        os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + f"\n{sentence}\n".encode())


def _handled_by(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Install the handler for all three signals. Returns the previous handlers."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Python allows it only there
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    return before


def _put_back(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
