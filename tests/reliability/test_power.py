"""Power cuts: the newest checkpoint whose saving was over is there, whole; of anything else the old or the new."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from bench import STEPS, train
from disks import Logging
from powercut import Operation, World, without

from groundling import storage
from groundling.run.metrics_log import rewind
from groundling.training.checkpoints import Checkpoints
from groundling.training.state import read_state

SAVED = ("model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json")


@dataclass
class Recording:
    """A training: its operations, and among them, in order, the names of what was over (`step-000001`, ...)."""

    root: Path
    log: list[Operation | str]
    contents: dict[str, dict[str, bytes]]  # of each checkpoint


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    root, disk, contents = tmp_path_factory.mktemp("recorded"), Logging(), {}
    save = Checkpoints.save

    def marked(self: Checkpoints, *arguments: object) -> Path:
        path = save(self, *arguments)  # type: ignore[arg-type]
        contents[path.name] = {name: (path / name).read_bytes() for name in SAVED}
        disk.log.append(path.name)  # type: ignore[arg-type]
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", "")  # which `train` sets, is put back
        patch.setattr(storage, "disk", disk)
        patch.setattr(Checkpoints, "save", marked)
        train(root)
    return Recording(root, disk.log, contents)  # type: ignore[arg-type]


def check(found: Path, recording: Recording, over: list[str]) -> None:
    """Raise AssertionError if something that was saved is lost, half there or mixed up."""
    checkpoints = Checkpoints(found / "run" / "checkpoints")
    newest = checkpoints.newest(lambda sentence: None)
    if newest is not None:
        content = {name: (newest / name).read_bytes() for name in SAVED}
        assert content == recording.contents[newest.name], f"{newest.name} is a mix"
        state = read_state(newest)
        rewind(found / "run", state.step, state.evaluated_step)
        lines = storage.read_json_lines(found / "run" / "metrics.jsonl")
        steps = [line["step"] for line in lines if line["event"] == "step"]
        assert steps == list(range(1, state.step + 1)), "the history has a gap"
    if over:
        assert newest is not None and newest.name >= over[-1], f"{over[-1]} is lost"
        for pointer in ("last", "best"):
            pointed = checkpoints.pointed(pointer)
            assert pointed is not None and pointed.name >= over[-1], f"{pointer} does not point at {over[-1]}"
            checkpoints.verify(pointed)
        whole = [path for path in map(checkpoints.path, checkpoints.steps()) if _is_whole(checkpoints, path)]
        assert len(whole) >= min(2, len(over)), "fewer than two whole checkpoints stand"
        assert storage.read_json(found / "run" / "config.json") and storage.read_json(found / "run" / "tokenizer.json")
        tokens = [path for path in (found / "cache" / "tokens").iterdir() if path.is_dir() and path.name[0] != "."]
        assert tokens and storage.verify(tokens[0])


def _is_whole(checkpoints: Checkpoints, path: Path) -> bool:
    try:
        checkpoints.verify(path)
    except ValueError:
        return False
    return True


def cut_everywhere(recording: Recording, log: list[Operation | str], chances: int) -> int:
    """Cut the power after each operation; check the world of what was safe, and `chances` others. Returns how many."""
    world, over, random, n = World(recording.root), list[str](), Random(0), 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for entry in log:
            if isinstance(entry, str):
                over.append(entry)
            else:
                world.do(entry)
            for chance in range(1 + chances):
                found = Path(folder) / "found"
                world.cut(found, random if chance else None)
                check(found, recording, over)
                shutil.rmtree(found)
                n += 1
    return n


def test_a_power_cut_leaves_the_old_or_the_new(recording: Recording) -> None:
    assert [entry for entry in recording.log if isinstance(entry, str)] == sorted(recording.contents)
    assert len(recording.contents) == STEPS
    assert cut_everywhere(recording, recording.log, chances=3) > 400


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_power_cuts(recording: Recording) -> None:
    assert cut_everywhere(recording, recording.log, chances=100) > 10_000


FORGOTTEN: dict[str, Callable[[Path], bool]] = {
    "tensors": lambda path: path.suffix == ".safetensors",
    "a manifest": lambda path: path.name == storage.MANIFEST,
    "the folder that is filled": lambda path: path.name.startswith(".tmp-step"),
    "the folder of checkpoints": lambda path: path.name == "checkpoints",
    "a pointer": lambda path: path.name.startswith(".tmp-best"),
    "the history": lambda path: path.name == "metrics.jsonl",
    "the folder of the run": lambda path: path.name == "run",
    "tokens": lambda path: path.name == "tokens.bin",
    "the record": lambda path: path.name.startswith(".tmp-config.json"),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_forgotten_fsync_is_found(what: str, recording: Recording) -> None:
    log = without(recording.log, FORGOTTEN[what])
    assert len(log) < len(recording.log)
    with pytest.raises((AssertionError, ValueError)):
        cut_everywhere(recording, log, chances=3)
