"""Checkpoints that a thread writes: one at a time, reported when they are complete, and not changed by training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from groundling import storage
from groundling.model.weights_file import read_tensors
from groundling.parallel.mesh import Mesh
from groundling.parallel.parts import copied_parts
from groundling.parallel.processes import Ranks
from groundling.training.checkpoints import Checkpoints, Snapshot
from groundling.training.saver import Saver
from groundling.training.state import TrainState

MAIN, OTHER = Mesh(0, 2, data=2, shard=2), Mesh(1, 2, data=2, shard=2)


class Gate(storage.Disk):
    """A disk that waits before it writes tensors."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def fill(self, path: Path, write: Callable[[Path], object]) -> None:
        assert self.open.wait(30)
        super().fill(path, write)


class Desk:
    def __init__(self, folder: Path, mesh: Mesh) -> None:
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_text("{}")
        self.saved: list[int] = []
        self.weights = {"a": torch.zeros(3)}
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.saver = Saver(self.checkpoints, mesh, lambda step, name: self.saved.append(step))

    def snapshot(self, step: int) -> Snapshot:
        self.weights["a"].fill_(step)
        parts = copied_parts(self.weights, {}, Mesh.single())
        return Snapshot(TrainState(step=step), parts.tensors, {}, parts.offsets)

    def save(self, step: int) -> None:
        self.saver.save(lambda: self.snapshot(step), 2)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The group of processes has one process here."""
    disk = Gate()
    monkeypatch.setattr(storage, "disk", disk)
    monkeypatch.setattr(storage.retry, "WAITS", ())
    monkeypatch.setattr(Ranks, "in_background", Ranks)
    return disk


def test_training_goes_on_and_does_not_change_what_is_saved(tmp_path: Path, gate: Gate) -> None:
    desk = Desk(tmp_path, MAIN)
    desk.save(1)
    desk.weights["a"].fill_(7)
    desk.saver.poll()
    assert desk.saved == [] and desk.checkpoints.steps() == []
    gate.open.set()
    desk.saver.wait()
    assert desk.saved == [1]
    found = read_tensors(desk.checkpoints.path(1) / "model.safetensors", {"a": (3,)})
    assert torch.equal(found["a"], torch.ones(3))
    desk.saver.poll()
    desk.saver.wait()
    assert desk.saved == [1]


def test_one_is_written_at_a_time(tmp_path: Path, gate: Gate) -> None:
    desk = Desk(tmp_path, MAIN)
    desk.save(1)
    opened = threading.Timer(0.2, gate.open.set)
    opened.start()
    desk.saver.save(lambda: desk.snapshot(2 if desk.saved == [1] else -1), 2)
    desk.saver.wait()
    assert desk.saved == [1, 2] and desk.checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("mesh", [MAIN, OTHER])
def test_a_failed_write_is_told_once_by_rank_0(tmp_path: Path, gate: Gate, mesh: Mesh) -> None:
    desk = Desk(tmp_path, mesh)
    (tmp_path / "tokenizer.json").unlink()
    gate.open.set()
    desk.save(1)
    assert desk.saver._writing is not None
    desk.saver._writing[1].exception(30)
    if mesh.is_main:
        with pytest.raises(OSError, match="step-000001 cannot be written"):
            desk.saver.poll()
    desk.saver.poll()
    assert desk.saved == [] and desk.checkpoints.steps() == []


def test_a_run_with_a_time_budget_waits(tmp_path: Path, gate: Gate) -> None:
    desk = Desk(tmp_path, MAIN)
    desk.saver.in_background = False
    gate.open.set()
    desk.save(1)
    assert desk.saved == [1]
