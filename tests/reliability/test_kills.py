"""kill -9 at every operation on the disk, in the midst of writes too: the same command ends with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
BENCH = Path(__file__).with_name("bench.py")


def killed(every: int) -> int:
    """How many kills there were, none of which did harm."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a kill takes nothing from a disk, so be quick
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        command = [sys.executable, str(BENCH), folder, str(every)]
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["failures"] == []
    return result["kills"]


def test_a_kill_at_an_operation_loses_nothing() -> None:
    """Preparing, saving, pruning, and recovering from a kill before: an eleventh of all the operations."""
    assert killed(every=11) > 22


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_kill_at_any_operation_loses_nothing() -> None:
    assert killed(every=1) > 250
