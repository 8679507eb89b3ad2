"""Ctrl-C (SIGINT), SIGTERM and SIGHUP: the first one saves and stops, the second one ends the process at once.

This module does not import torch, so that signals are handled even while torch is still being imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import Any

from groundling.escape import say

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # Windows has no SIGHUP
_SAVING = "Saving and stopping. Press Ctrl-C again to quit without saving."


class StopRequest:
    """Whether a signal, and which, asked to stop. See `stop_request`."""

    signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A context in which the first signal makes the yielded StopRequest true.

    The second signal gets the system's default action, which ends the process at once, even in the middle of a long
    computation. That loses no saved work, since files are replaced atomically. If SIGHUP is ignored, as under `nohup`,
    it stays ignored.
    """
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            if signal.getsignal(each) is handle:
                signal.signal(each, signal.SIG_DFL)
        stop.signal = number
        if os.environ.get("WORLD_SIZE", "1") == "1":
            say(_SAVING)

    with _handled_by(handle):
        yield stop


def said(agreed: Callable[[], bool]) -> Callable[[], bool]:
    """`agreed`, whether all of several processes stop. Says so when it is first true: a signal alone may mean that
    another process was killed, and that there is nothing to save."""
    known = False

    def saying() -> bool:
        nonlocal known
        if agreed() and not known:
            known = True
            say(_SAVING)
        return known

    return saying


def ended_by_signals() -> AbstractContextManager[None]:
    """A context for work with nothing to save: the first signal ends the process with exit code 128 + signal.

    It does not raise an exception, since libraries often catch one during their import and report themselves broken.
    """
    return _handled_by(_end)


def _end(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        say("groundling: stopped. Nothing that was saved is lost; run the same command again to continue.")
    with suppress(Exception):  # another thread may be using it
        sys.stdout.flush()
    os._exit(128 + number)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """A context in which `handler` gets all three signals."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Python allows it only there
        for number in _SIGNALS:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
