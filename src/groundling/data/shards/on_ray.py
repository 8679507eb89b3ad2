"""The work on shards by the nodes of a Ray cluster: `groundling prepare --executor ray`.

A task of Ray is what a process of pool.py does with one shard: files in, a folder out, on a disk that all nodes see. So
a task that runs again, because its node was lost, finds the folder that it has finished, or none.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from groundling import __version__, storage
from groundling.data.shards import pool
from groundling.data.shards.pool import Submit

MARK = "shared-by-nodes"
"""A file in the cache with a random number, by which a node sees that it has the same cache."""
_ENDS = 30.0  # seconds that tasks may take to end after an error
_ANSWERS = 20.0  # seconds to wait for a cluster
_OTHERS = (errno.EEXIST, errno.ENOTEMPTY)  # another node has finished the same shard


@dataclass(frozen=True)
class Shared:
    """What all nodes must see as the machine does that started."""

    folder: Path
    """The working folder, from which the paths of texts start."""
    mark: Path
    content: bytes
    version: str = __version__


@contextmanager
def on_ray(address: str | None) -> Iterator[None]:
    """A context in which the work on shards is done by a Ray cluster: that of `address` or `RAY_ADDRESS`, or one that
    runs on this machine, or else a new one of all cores here.

    Raises ValueError if Ray is not installed, or no such cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray would warn of it
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError(f'--executor ray needs {error.name}: pip install "groundling[ray]".') from None
    with _own_signals():
        try:
            _check_reachable(address or os.environ.get("RAY_ADDRESS", ""))
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        except (OSError, RuntimeError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"Ray cannot use the cluster {address or os.environ.get('RAY_ADDRESS', 'here')}: {reason}. Check "
                "--ray-address, or leave it out to use this machine alone."
            ) from None
    try:
        with pool.done_by(partial(_workers, shared_by_nodes())):
            yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise OSError if nobody listens at `address`, for which Ray would wait two minutes."""
    if found := re.fullmatch(r"(?:ray://)?([^/:]+):(\d{1,5})", address):
        socket.create_connection((found[1], int(found[2])), _ANSWERS).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def shared_by_nodes() -> Shared:
    mark = storage.cache_folder() / MARK
    if not mark.exists():
        storage.make_folder(mark.parent)
        storage.write_file(mark, uuid.uuid4().hex)
    return Shared(Path.cwd(), mark.absolute(), mark.read_bytes())


@contextmanager
def _workers(shared: Shared) -> Iterator[Submit]:
    """`pool.workers`, on a cluster. If the block raises, no task is at work afterwards."""
    import ray

    # A failure of a node is no error of the function: it runs again, on another node.
    task = ray.remote(num_cpus=1, max_retries=5)(work)
    given, begun = ray.put(shared), list[Any]()

    def submit(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        begun.append(task.remote(given, function, arguments))
        return partial(_result, begun[-1])

    try:
        yield submit
    except BaseException:
        for each in begun:
            ray.cancel(each, force=True)
        ray.wait(begun, num_returns=len(begun), timeout=_ENDS)
        raise


def work(shared: Shared, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """On a node: the result of `function`, or its error, if that is one for the user."""
    try:
        _join(shared)
        try:
            return function(*arguments), None
        except OSError as error:
            if error.errno not in _OTHERS:
                raise
            return function(*arguments), None
    except FileNotFoundError as error:
        return None, _failure(f"The node {socket.gethostname()} does not see {error.filename}. {_SAME_DISK}")
    except (ValueError, OSError) as error:
        return None, error


def _join(shared: Shared) -> None:
    """In a process of a node, see all as the machine does that started. Raises OSError if that cannot be."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each task has a core of its own
    node = f"The node {socket.gethostname()}"
    if shared.version != __version__:
        raise _failure(f"{node} has groundling {__version__}, not {shared.version}. Install the same on all nodes.")
    if not shared.mark.exists() or shared.mark.read_bytes() != shared.content:
        raise _failure(f"{node} does not share the folder {shared.mark.parent}. {_SAME_DISK}")
    os.chdir(shared.folder)


_SAME_DISK = (
    "Put the text and the cache ($GROUNDLING_CACHE) on a disk that all nodes of the cluster see under the same path."
)


def _failure(sentence: str) -> OSError:
    """An error that is not the text's. Like the disk's, it has a number, so that nobody reads the text for it."""
    return OSError(errno.EIO, sentence)


def _result(task: Any) -> Any:
    """Wait for a task. Raises its error, or OSError if it was lost again and again."""
    import ray

    try:
        found, error = ray.get(task)
    except ray.exceptions.RayTaskError as failed:
        if isinstance(failed.cause, ModuleNotFoundError | AttributeError):
            raise _failure(
                f"A node of the Ray cluster cannot run groundling {__version__}: {failed.cause}. Install the same "
                "packages on all nodes."
            ) from None
        raise failed.cause from None
    except ray.exceptions.RayError as lost:
        raise _failure(
            f"Ray gave up a shard of the text ({type(lost).__name__}). What was finished is kept: run the same command "
            "again to continue."
        ) from None
    if error is not None:
        raise error
    return found
