"""Processes that work on shards, and end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from groundling.cores import granted_cores

Submit = Callable[..., Callable[[], Any]]
"""`submit(function, *arguments)` gives a function that waits for the result and returns it."""

_SMALL = 64 * 2**20  # bytes; the start of other processes takes longer


def processes_for(size: int, wanted: int | None = None) -> int:
    """How many processes to use for a text of `size` bytes: `wanted`, or one for each core if it is worth it."""
    if wanted is not None:
        return wanted
    return granted_cores() if size > _SMALL else 1


_others = ContextVar[Callable[[], AbstractContextManager[Submit]] | None]("_others", default=None)


@contextmanager
def done_by(others: Callable[[], AbstractContextManager[Submit]]) -> Iterator[None]:
    """A context in which `workers` gives all work to `others` instead of processes of this machine."""
    token = _others.set(others)
    try:
        yield
    finally:
        _others.reset(token)


@contextmanager
def workers(processes: int) -> Iterator[Submit]:
    """Yield a function to submit work to so many processes. With one, all work is done in this process, when its
    result is asked for.

    If the block raises, or if this process is killed, the others end at once.
    """
    if (others := _others.get()) is not None:
        with others() as submit:
            yield submit
        return
    if processes == 1:
        yield lambda function, *arguments: partial(function, *arguments)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    watched, alive = context.Pipe(duplex=False)  # nobody writes: it closes when this process ends
    executor = ProcessPoolExecutor(processes, context, _begin, (watched,))
    try:
        yield partial(_submit, executor)
        executor.shutdown()
    finally:
        alive.close()
        executor.shutdown(cancel_futures=True)
        watched.close()


def _submit(executor: ProcessPoolExecutor, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    with _without_main():
        future = executor.submit(function, *arguments)

    def result() -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            raise OSError(
                "A process that prepared the text was ended, probably because memory ran out. What was finished is "
                "kept. Run `groundling prepare` with the same text and a smaller --processes."
            ) from None

    return result


@contextmanager
def _without_main() -> Iterator[None]:
    """A new process imports the script that started this one. Without `if __name__ == "__main__"` it would train, too.
    The work is none of a script's, so hide it while a process may start."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin(watched: Connection) -> None:
    """In a new process: leave Ctrl-C to the one that started it, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has a core of its own
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _end_with(watched: Connection) -> None:
    try:
        watched.recv()
    except (EOFError, OSError):
        os._exit(1)
