"""The processes that train one model together, as torchrun started them: what they decide together.

Each has a rank. Rank 0, the main one, prepares the run, writes its files and talks to the user. The others wait for it.
With one process, every function here returns at once what it was given.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from groundling.machine import local_size

T = TypeVar("T")

_TIMEOUT = timedelta(hours=1)  # rank 0 may index a long text meanwhile
_CPU = torch.device("cpu")
_joined_before = itertools.count()  # times, in this process
_LOST = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "remote process", "got 0 bytes")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def is_first_of_machine() -> bool:
    """Whether this is the first of those on its machine, and there are several machines."""
    return size() > local_size() and os.environ.get("LOCAL_RANK") == "0"


def together() -> bool:
    """Whether this process can reach others."""
    return dist.is_initialized()


@contextmanager
def joined() -> Iterator[None]:
    """A context in which this process can reach the others. CPUs talk by gloo, GPUs by NCCL, each process with the GPU
    of its local rank. If whoever started them is killed, they save and stop."""
    if size() == 1 or together():
        yield
        return
    over = threading.Event()
    threading.Thread(target=_stop_with_parent, args=(os.getppid(), over), daemon=True).start()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT, world_size=size(), rank=rank(), store=_new_store())
    try:
        yield
    finally:
        over.set()
    dist.destroy_process_group()  # not after an error: it would wait for processes that are gone


def _new_store() -> dist.Store:  # type: ignore[name-defined]
    """Torchrun's store, under keys that nobody has used. It also holds the addresses of connections that are closed: of
    earlier calls of `joined`, and of processes that were killed before torchrun started these.

    With several machines, each counts its own starts, so use --rdzv-backend c10d there: it makes a new store.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if local_size() == size() else "0"
    store, *_ = next(rendezvous("env://", timeout=_TIMEOUT))
    return dist.PrefixStore(f"start-{start}-{next(_joined_before)}", store)  # type: ignore[attr-defined]


def _stop_with_parent(parent: int, over: threading.Event) -> None:
    """Ask this process to stop if it becomes an orphan, which nobody else could stop. Windows does not tell."""
    while os.getppid() == parent:
        if over.wait(1):
            return
    os.kill(os.getpid(), signal.SIGTERM)


def agree(flag: bool) -> bool:
    """Whether `flag` is true on any rank."""
    return largest(int(flag)) > 0


def largest(number: int) -> int:
    """The largest `number` of all ranks."""
    if not together():
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def from_main(value: T) -> T:
    """Rank 0's `value`, on all ranks."""
    if not together():
        return value
    values = [value]
    dist.broadcast_object_list(values, device=_CPU)
    return values[0]


def on_main(action: Callable[[], T]) -> T:
    """Do something on rank 0 only. All ranks get the result; if it raises, the others end when they miss rank 0."""
    return from_main(action() if is_main() else None)  # type: ignore[return-value]  # that is rank 0's, not None


def first(words: str) -> str:
    """The `words` of the lowest rank that has any."""
    if not together():
        return words
    everyone: list[str] = [""] * size()
    dist.all_gather_object(everyone, words)
    return next(filter(None, everyone), "")


def clock() -> float:
    """Seconds on rank 0's clock: the same on all ranks."""
    if not together():
        return time.perf_counter()
    now = torch.tensor(time.perf_counter(), dtype=torch.float64)
    dist.broadcast(now, 0)
    return float(now)


class Ranks:
    """Processes that write something together, step by step. If a step fails on one, its error is raised on all."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Without a group, there is this process alone."""
        self.group = group
        self.rank, self.size = (group.rank(), group.size()) if group else (0, 1)

    @staticmethod
    def in_background() -> Ranks:
        """All processes, for a thread beside the one that trains. All must call this."""
        return Ranks(dist.new_group(backend="gloo", timeout=_TIMEOUT))

    def each(self, action: Callable[[], T]) -> list[T]:
        """Do something on each rank. All get all results."""
        if self.size == 1:
            return [action()]
        mine: tuple[T | None, Exception | None]
        try:
            mine = action(), None
        except Exception as error:
            mine = None, error
        outcomes = self._of_all(mine)
        for _, failure in outcomes:
            if failure is not None:
                raise failure
        return [result for result, _ in outcomes]

    def _of_all(self, mine: object) -> list[Any]:
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, mine, self.group)
        return everyone

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 only. All get the result."""
        return self.each(lambda: action() if self.rank == 0 else None)[0]  # type: ignore[return-value]


def lost_another(error: BaseException) -> bool:
    """Whether an error only says that another process is gone. That process says why, or whoever started it."""
    return size() > 1 and isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _LOST)
