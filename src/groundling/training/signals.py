"""Ctrl-C (SIGINT), SIGTERM and SIGHUP: what has been learned is saved first; the second one ends the process at once.

Nothing here imports torch, so that a signal is answered while that is still being imported.
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
_SHOW_CURSOR = b"\x1b[?25h"  # a live display has hidden it, and whoever is killed cannot bring it back


class StopRequest:
    """While it is entered, the first of the signals asks for a stop: `stop()` is true from then on.

    The second one is left to the system, which ends the process at once, even in the midst of a long computation:
    whatever is saved is whole at any time. Where SIGHUP was ignored before, as it is under `nohup`, it stays so.
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
        say("Stopping: what is learned is saved first; once more to quit at once.")

    def __enter__(self) -> StopRequest:
        self._before = _handled_by(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _put_back(self._before)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """What is done inside has nothing to save yet: the first signal ends the process, with one line and 128 + signal.

    Not by an exception: one that appears in the midst of an import is often taken for a broken library.
    """
    before = _handled_by(_end)
    try:
        yield
    finally:
        _put_back(before)


def _end(number: int, frame: FrameType | None) -> None:
    say("groundling: stopped. What was saved before is whole, and the same command goes on from there.")
    with suppress(Exception):  # it may be in use just now
        sys.stdout.flush()
    os._exit(128 + number)


def say(sentence: str) -> None:
    """Straight to the file descriptor: a display may hold its lock just now. A terminal may be gone, too."""
    with suppress(OSError):
        os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + f"\n{sentence}\n".encode())


def _handled_by(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Sets the handler of all three, and returns those of before."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    return before


def _put_back(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
