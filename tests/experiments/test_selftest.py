"""`groundling selftest`: that it kills everywhere, that all comes out equal, and that it would say if it did not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import groundling
from groundling.experiments import selftest
from groundling.experiments.selftest import PHASES, SelftestResult


def assert_nothing_lost(found: SelftestResult, kills: int) -> None:
    assert found.difference is None
    assert found.kills == kills == sum(found.by_phase.values())
    assert found.by_phase.keys() == set(PHASES)
    assert abs(2 * found.at_operations - kills) <= 1
    assert kills - found.runs <= found.resumes <= kills
    assert found.tensors > 30
    assert found.losses == 36 + 7  # steps and evaluations
    assert found.batches == 36  # one a step, of two micro-batches


def test_5_kills_lose_nothing() -> None:
    told: list[tuple[int, int]] = []
    found = groundling.selftest(kills=5, seed=5, progress=lambda done, total: told.append((done, total)))
    assert_nothing_lost(found, 5)
    assert told == [(n, 5) for n in range(1, 6)]
    assert sum(kills > 0 for kills in found.by_phase.values()) >= 3  # of six: on a busy machine some strike late
    assert found.by_phase["saving"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_200_kills_lose_nothing() -> None:
    found = groundling.selftest(kills=200, seed=6)
    assert_nothing_lost(found, 200)
    assert min(found.by_phase.values()) >= 5
    assert found.half_written >= 5


@pytest.mark.slow
def test_without_forks_all_are_new_interpreters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selftest, "_FORKS", False)
    selftest.supervise(str(tmp_path), "6", "7")
    found = SelftestResult(**json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert_nothing_lost(found, 6)
    assert found.new_interpreters == 6


PLANTED = {  # a file, a line of it, what stands there instead, and what the test must say
    "the optimizer is forgotten": (
        "learner.py", "self.optimizer.load_state_dict({name: tensors[name] for name in optimizer})",
        "self.optimizer.load_state_dict({})", "The last checkpoint's",
    ),
    "the newest checkpoint is ignored": (
        "checkpoints.py", "faults = list[str]()\n        for path in map(self.path, reversed(self.steps())):",
        "faults = list[str]()\n        for path in map(self.path, self.steps()):",
        "had been saved, but training continued from step",
    ),
}  # fmt: skip


@pytest.mark.slow  # that a loss is seen, test_resume.py shows with many more faults
@pytest.mark.parametrize("fault", PLANTED)
def test_what_is_lost_is_found(fault: str, tmp_path: Path) -> None:
    """The command as users type it, on a copy of the package with a fault planted."""
    assert groundling.__file__
    source = tmp_path / "src" / "groundling"
    shutil.copytree(Path(groundling.__file__).parent, source)
    name, right, wrong, said = PLANTED[fault]
    file = source / "training" / name
    assert file.read_text("utf-8").count(right) == 1
    file.write_text(file.read_text("utf-8").replace(right, wrong), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "groundling", "selftest", "--kills", "4", "--seed", "1", "--json"],
        env=os.environ | {"PYTHONPATH": str(source.parent), "TMPDIR": str(tmp_path)},
        capture_output=True, encoding="utf-8",
    )  # fmt: skip
    found = SelftestResult(**json.loads(done.stdout))
    assert done.returncode == 1
    assert found.difference is not None
    assert said in found.difference
    assert found.folder is not None
    assert (Path(found.folder) / "runs" / "whole").is_dir()


def test_no_kills_are_no_test() -> None:
    with pytest.raises(ValueError, match="--kills must be at least 1, not 0"):
        groundling.selftest(kills=0)
