"""Commands that start several processes."""

from __future__ import annotations

import os
import subprocess
import sys


def environment(**more: str) -> dict[str, str]:
    """That of the tests, with one thread for each process."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | more


def torchrun(processes: int, *words: str, **more: str) -> str:
    """What a torchrun that succeeds prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=600)
    assert done.returncode == 0, done.stderr[-20_000:]  # the rank that failed first says why long before the last line
    return done.stdout
