"""Checkpoints: whole, verified, pruned, and never overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from groundling import storage
from groundling.config import MachineSettings, ModelSettings, TrainingSettings
from groundling.machine import choose
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.model.weights_file import load_weights
from groundling.training.checkpoints import AllDamaged, Checkpoints
from groundling.training.learner import Learner
from groundling.training.state import TrainState
from idle_task import IdleTask

SETTINGS = ModelSettings(block_size=8, n_layer=1, n_head=2, n_embd=16)


def learner(settings: TrainingSettings = TrainingSettings()) -> Learner:  # noqa: B008  (frozen)
    machine = choose(MachineSettings(device="cpu", dtype="float32"))
    return Learner(InitialModel(SETTINGS, 11, seed=0), IdleTask(), settings, machine)


class Desk:
    """A model in training, with a run's folder around it."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.learner = learner()
        self.folder = folder
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_text("{}")
        self.checkpoints = Checkpoints(folder / "checkpoints")

    def save(self, step: int, best: int = -1, keep: int = 2) -> Path:
        self.learner.model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()
        self.learner.apply(step)
        state = TrainState(step=step, tokens=step * 8, best_step=best, best_score=1.5)
        return self.checkpoints.save(self.learner.snapshot(state), keep)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_what_is_saved_is_what_is_loaded(desk: Desk) -> None:
    path = desk.save(10, best=10)
    other = learner()
    state = other.load(path)
    assert state == TrainState(step=10, tokens=80, best_step=10, best_score=1.5)
    parameters = zip(other.model.parameters(), desk.learner.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in parameters)
    saved, loaded = desk.learner.optimizer.state_dict(), other.optimizer.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)


def test_the_newest_and_the_best_stay(desk: Desk) -> None:
    for step in (10, 20, 30, 40, 50):
        desk.save(step, best=20)
    assert desk.checkpoints.steps() == [20, 40, 50]
    assert desk.checkpoints.pointed("best") == desk.checkpoints.path(20)
    assert desk.checkpoints.pointed("last") == desk.checkpoints.path(50)


def test_two_stay_though_one_is_asked_for(desk: Desk) -> None:
    for step in (10, 20, 30):
        desk.save(step, keep=1)
    assert desk.checkpoints.steps() == [20, 30]


def test_two_whole_ones_stay_where_another_is_damaged(desk: Desk) -> None:
    desk.save(10)
    damage(desk.save(20) / "model.safetensors")
    desk.save(30)
    assert desk.checkpoints.steps() == [10, 20, 30]
    desk.save(40)
    assert desk.checkpoints.steps() == [30, 40]


def test_nothing_is_deleted_before_the_new_one_is_read_back(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.save(10)
    desk.save(20)
    monkeypatch.setattr(storage.retry, "WAITS", ())
    monkeypatch.setattr(storage, "verify", lambda folder: {"step": 31})
    with pytest.raises(OSError, match="the disk returned different data than was written"):
        desk.save(30)
    monkeypatch.undo()
    assert desk.checkpoints.steps()[:2] == [10, 20]
    assert desk.checkpoints.pointed("last") == desk.checkpoints.path(20)


def test_a_lost_pointer_to_the_best_comes_back_and_the_best_is_never_pruned(desk: Desk) -> None:
    desk.save(10, best=10)
    (desk.checkpoints.folder / "best.json").write_text("{}")
    for step in (20, 30, 40):
        desk.save(step, best=10)
    assert desk.checkpoints.pointed("best") == desk.checkpoints.path(10)


def test_the_manifest_says_whose_and_which_it_is(desk: Desk) -> None:
    (desk.folder / "config.json").write_text('{"corpus": {"fingerprint": "abc"}}')
    manifest = storage.read_checksummed(desk.save(10) / storage.MANIFEST)
    assert manifest["format"] == storage.FORMAT
    assert manifest["about"]["step"] == 10 and manifest["about"]["corpus"] == "abc"
    assert {"groundling", "torch"} <= manifest["about"]["versions"].keys()
    hashed = {"config.json", "model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json"}
    assert manifest["files"].keys() == hashed


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_room_that_checkpoints_take_is_known_before_the_first(
    optimizer: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainingSettings(optimizer=optimizer, keep_checkpoints=3)
    desk.learner = learner(settings)
    guess = desk.learner.checkpoint_size
    real = sum(file.stat().st_size for file in desk.save(10).iterdir())
    assert 0 <= guess - real < 20_000
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 4 * guess)  # the best, three, one being written; less one
    desk.checkpoints.check_room(guess, settings)
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 4 * guess - 1)
    with pytest.raises(OSError, match=r"The checkpoints of this run need .* more \(5 of .* and the disk of .* free\."):
        desk.checkpoints.check_room(guess, settings)


def test_keep_0_keeps_all(desk: Desk) -> None:
    for step in (10, 20, 30, 40):
        desk.save(step, keep=0)
    assert desk.checkpoints.steps() == [10, 20, 30, 40]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_and_said(desk: Desk, name: str) -> None:
    desk.save(10)
    (desk.save(20) / name).unlink()
    notices: list[str] = []
    assert desk.checkpoints.newest(notices.append) == desk.checkpoints.path(10)
    assert "step-000020" in notices[0]


def test_a_flipped_bit_is_found(desk: Desk) -> None:
    desk.save(10)
    damage(desk.save(20) / "optimizer.safetensors")
    notices: list[str] = []
    assert desk.checkpoints.newest(notices.append) == desk.checkpoints.path(10)
    assert "optimizer.safetensors is damaged" in notices[0]


def test_a_step_that_is_there_and_whole_is_not_written_again(desk: Desk) -> None:
    path = desk.save(10)
    before = (path / "model.safetensors").stat().st_mtime_ns
    desk.save(10)
    assert (path / "model.safetensors").stat().st_mtime_ns == before


def test_a_step_that_is_there_and_damaged_is_replaced(desk: Desk) -> None:
    damage(desk.save(10) / "model.safetensors")
    desk.save(10)
    assert desk.checkpoints.newest(lambda sentence: pytest.fail(sentence)) == desk.checkpoints.path(10)


def test_checkpoints_that_cannot_be_read_are_not_none(desk: Desk) -> None:
    desk.save(10)
    for step in (10, 20):
        (desk.save(step) / "state.json").write_text("{}")
    with pytest.raises(AllDamaged, match=r"has 2 checkpoint\(s\), but none can be read: .*20/state.json is damaged"):
        desk.checkpoints.newest(lambda sentence: pytest.fail(sentence))


def test_line_ends_of_git_are_no_damage(desk: Desk) -> None:
    path = desk.save(10, best=10)
    for file in desk.checkpoints.folder.rglob("*.json"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert desk.checkpoints.newest(lambda sentence: pytest.fail(sentence)) == desk.checkpoints.pointed("best") == path
    (path / "state.json").write_bytes((path / "state.json").read_bytes().replace(b"10", b"11", 1))
    with pytest.raises(AllDamaged, match=r"state\.json is damaged"):
        desk.checkpoints.newest(lambda sentence: pytest.fail(sentence))


def test_weights_of_another_model_are_refused(desk: Desk) -> None:
    path = desk.save(10)
    with pytest.raises(ValueError, match=r"do not fit the model in its config.json: h\.1"):
        load_weights(path, GPT(ModelSettings(block_size=8, n_layer=2, n_head=2, n_embd=16), 11))


def test_without_checkpoints_there_is_no_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.newest(lambda sentence: pytest.fail(sentence)) is None
    assert checkpoints.pointed("best") is None
