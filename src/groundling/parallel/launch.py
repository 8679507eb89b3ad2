"""`--processes N`: a command starts itself N times, with torchrun's agent, and waits."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence

import psutil
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from groundling.escape import say
from groundling.machine import COMMAND_STARTED, process_age
from groundling.parallel.exit_codes import LOST_ANOTHER, START_AGAIN

_AGAIN = "Nothing that was saved is lost: run the same command again to continue."
_MOST = 4  # processes for each core: more would only wait for each other
_SAVING = 600  # seconds that a stopped run may take to save; a second signal ends it at once


def launch(n: int, arguments: Sequence[str]) -> int:
    """Run `groundling` with these arguments in `n` processes. Returns the exit code: that of the first to fail.

    The processes write to this one's standard streams. A signal is passed on to them, so that they save and stop.
    Raises ValueError if there are far more of them than cores.
    """
    if n > (most := _MOST * (os.cpu_count() or 1)):
        raise ValueError(f"--processes {n} is too many for this machine: its cores can run {most} at the most.")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    os.environ[COMMAND_STARTED] = str(time.time() - process_age())
    while True:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=n, run_id=str(os.getpid()), rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=0, shutdown_timeout=_SAVING,
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else it leaves empty folders
        )  # fmt: skip
        try:
            launch_agent(config, sys.executable, ["-m", "groundling", *arguments])
            return 0
        except SignalException as stop:
            for process in psutil.Process().children(recursive=True):  # there are some after a second signal
                process.kill()
            return 128 + stop.sigval
        except ChildFailedError as error:
            status = _reported(error.failures)
        if status != START_AGAIN:
            return status
        os.environ[COMMAND_STARTED] = str(time.time())  # the time until now is lost


def _reported(failures: Mapping[int, ProcessFailure]) -> int:
    """The exit code for processes that failed. Those that were killed could not say so themselves."""
    causes = {r: f for r, f in failures.items() if f.exitcode not in (LOST_ANOTHER, -signal.SIGTERM)}
    if not causes:
        say(f"groundling: The processes lost each other. {_AGAIN}")
    status = LOST_ANOTHER
    for rank, failure in sorted(causes.items(), reverse=True):
        status = failure.exitcode
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            say(f"groundling: The process of rank {rank} was killed ({name}). {_AGAIN}")
            status = 128 - failure.exitcode
    return status
