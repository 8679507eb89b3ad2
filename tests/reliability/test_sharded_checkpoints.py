"""Checkpoints of which each rank writes a shard: killed, powered off, full or damaged, the old one or the new is there.

The ranks are threads, so that one kill ends all of them, as a power cut does. One rank that is killed alone is in
tests/parallel.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from bench import forked
from disks import HALVES, Failing, Killing, Logging
from powercut import World

from groundling import storage
from groundling.model.weights_file import read_shapes, read_tensors
from groundling.parallel.processes import Ranks
from groundling.storage import retry
from groundling.training.checkpoints import Checkpoints, Snapshot
from groundling.training.state import TrainState

RANKS = 2


class ThreadRanks(Ranks):
    """Ranks that are threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, board: list[Any]) -> None:
        super().__init__()
        self.rank, self.size, self.barrier, self.board = rank, barrier.parties, barrier, board

    def _of_all(self, mine: object) -> list[Any]:
        self.board[self.rank] = mine
        self.barrier.wait(60)
        everyone = list(self.board)
        self.barrier.wait(60)
        return everyone


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.arange(15.0).view(5, 3) + step, "b": torch.arange(4.0) * step}


def snapshot(step: int, rank: int) -> Snapshot:
    parts = {name: x.tensor_split(RANKS)[rank] for name, x in tensors(step).items()}
    offsets = {name: [rank * -(-len(x) // RANKS)] + [0] * (x.dim() - 1) for name, x in tensors(step).items()}
    moments = {f"{name}/exp_avg": -part for name, part in parts.items()}
    offsets |= {f"{name}/exp_avg": starts for name, starts in offsets.items()}
    return Snapshot(TrainState(step=step, best_step=step), parts, moments, offsets)


def save(checkpoints: Checkpoints, step: int, keep: int = 2) -> None:
    barrier, board = threading.Barrier(RANKS), [None] * RANKS
    with ThreadPoolExecutor(RANKS) as threads:
        done = [
            threads.submit(checkpoints.save, snapshot(step, rank), keep, ThreadRanks(rank, barrier, board))
            for rank in range(RANKS)
        ]
    errors = [each.exception() for each in done]
    assert len(set(map(str, errors))) == 1, "all ranks agree"
    if errors[0]:
        raise errors[0]


def begin(folder: Path) -> Checkpoints:
    """A run with a checkpoint of step 1."""
    storage.make_folder(folder)
    for name in ("config.json", "tokenizer.json"):
        storage.write_file(folder / name, "{}")
    checkpoints = Checkpoints(folder / "checkpoints")
    save(checkpoints, 1)
    return checkpoints


def check(checkpoints: Checkpoints, *steps: int) -> None:
    """The newest checkpoint is of one of these `steps`, and has all of its tensors."""
    newest = checkpoints.newest(lambda _: None)
    found = {checkpoints.path(step): step for step in steps}
    assert newest is not None and newest in found
    weights, moments = (
        read_tensors(file, read_shapes(file))
        for file in (newest / "model.safetensors", newest / "optimizer.safetensors")
    )
    for name, x in tensors(found[newest]).items():
        assert torch.equal(x, weights[name]) and torch.equal(-x, moments[f"{name}/exp_avg"])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[storage.Disk], None]:
    monkeypatch.setattr(retry, "WAITS", (0.0, 0.0, 0.0))
    return lambda disk: monkeypatch.setattr(storage, "disk", disk)


@pytest.fixture
def begun(tmp_path: Path) -> Callable[[object], Checkpoints]:
    """Makes runs with a checkpoint of step 1."""
    first = begin(tmp_path / "begun").folder.parent

    def copy(name: object) -> Checkpoints:
        return Checkpoints(Path(shutil.copytree(first, tmp_path / f"run-{name}")) / "checkpoints")

    return copy


@pytest.fixture
def operations(tmp_path: Path, disk: Callable[[storage.Disk], None]) -> list[tuple[str, Path, Any]]:
    """What the ranks do to save a second checkpoint."""
    checkpoints, log = begin(tmp_path / "counted"), Logging()
    disk(log)
    save(checkpoints, 2)
    disk(storage.Disk())
    check(checkpoints, 2)
    assert sorted(path.name for path in checkpoints.path(2).glob("*.safetensors")) == [
        f"{name}-0000{number}-of-00002.safetensors" for name in ("model", "optimizer") for number in (1, 2)
    ]
    return log.log


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_kill_at_any_operation_leaves_the_old_or_the_new(
    begun: Callable[[object], Checkpoints], operations: list[tuple[str, Path, Any]]
) -> None:
    for at, (name, _, _) in list(enumerate(operations, start=1))[::2]:
        checkpoints = begun(at)

        def killed(checkpoints: Checkpoints = checkpoints, at: int = at, name: str = name) -> None:
            storage.disk = Killing(at, midway=name in HALVES)
            save(checkpoints, 2)

        signal, answer = forked(killed)
        assert signal == 9, answer
        check(checkpoints, 1, 2)
        storage.remove_temporary(checkpoints.folder)
        save(checkpoints, 2)
        check(checkpoints, 2)
        assert not list(checkpoints.folder.glob(".tmp-*"))


def test_a_power_cut_leaves_the_old_or_the_new(tmp_path: Path, disk: Callable[[storage.Disk], None]) -> None:
    (tmp_path / "disk").mkdir()
    log, random, world = Logging(), Random(0), World(tmp_path / "disk")
    disk(log)
    checkpoints = begin(tmp_path / "disk" / "run")
    first = len(log.log)
    save(checkpoints, 2)
    disk(storage.Disk())
    for count, operation in enumerate(log.log, start=1):
        world.do(operation)
        for trial in range(3 if count >= first else 0):
            target = tmp_path / f"cut-{count}-{trial}"
            world.cut(target, random if trial else None)
            check(Checkpoints(target / "run" / "checkpoints"), 1, 2)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_disk_error_on_any_rank_is_retried_or_told(
    error: int, begun: Callable[[object], Checkpoints], operations: list[tuple[str, Path, Any]],
    disk: Callable[[storage.Disk], None],
) -> None:  # fmt: skip
    for at in range(1, len(operations) + 1, 4):
        checkpoints = begun(at)
        disk(Failing(error, at))
        save(checkpoints, 2)
        disk(storage.Disk())
        check(checkpoints, 2)
    checkpoints = begun("full")
    place = [i for i, (name, _, _) in enumerate(operations, start=1) if name == "fill"][-1]
    disk(Failing(error, place, times=1000))
    with pytest.raises(OSError, match=r"step-000002 cannot be written: .*What was saved before is intact"):
        save(checkpoints, 2)
    disk(storage.Disk())
    check(checkpoints, 1)


def test_a_damaged_or_missing_shard_is_found(tmp_path: Path) -> None:
    checkpoints = begin(tmp_path / "run")
    save(checkpoints, 2)
    for file in sorted(checkpoints.path(2).glob("*.safetensors")):
        content = file.read_bytes()
        for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], None):
            storage._hashed.clear()
            file.unlink() if damaged is None else file.write_bytes(damaged)
            check(checkpoints, 1)
            file.write_bytes(content)
    check(checkpoints, 2)
