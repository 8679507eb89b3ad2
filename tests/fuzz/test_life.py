"""Lives of runs that Hypothesis makes up, in a process of their own: it forks, and has one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="sessions are forked")


def lived(lives: int, events: int) -> dict[str, int]:
    """How often each kind of event happened in so many lives, none of which contradicted the oracle."""
    command = [sys.executable, str(Path(__file__).with_name("life.py")), str(lives), str(events)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stdout + run.stderr
    happened: dict[str, int] = json.loads(run.stdout)
    return happened


def test_whatever_happens_nothing_is_lost() -> None:
    happened = lived(6, 8)
    assert happened["lives"] >= 6
    assert happened["resumed to the end"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_whatever_happens_in_long_lives_nothing_is_lost() -> None:
    happened = lived(120, 30)
    for kind in ("killed", "damaged", "deleted", "faults of the disk", "resumed to the end"):
        assert happened[kind] > 30
