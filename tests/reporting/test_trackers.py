"""Trackers get what the run's own files have, once each, over stops and crashes; and no run is lost for one."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling.data.progress import silent
from groundling.reporting import trackers
from groundling.training.events import Event, Notice, Step

SHORT = {"steps": 12, "eval_every": 4, "checkpoint_every": 6, "sample_tokens": 8}


def crash_at(step: int) -> Any:
    def on_event(event: Event) -> None:
        if isinstance(event, Step) and event.step == step:
            raise RuntimeError("the power is gone")

    return on_event


def logged(run: groundling.Run, event: str, field: str) -> list[tuple[int, float]]:
    return [(line["step"], line[field]) for line in run.metrics() if line["event"] == event]


def test_tensorboard_reads_what_was_logged_over_a_crash(text_file: Path, tiny: dict[str, Any]) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = tiny | SHORT
    with pytest.raises(RuntimeError, match="power"):
        groundling.train(text_file, name="first", track=["tensorboard"], on_event=crash_at(10), **settings)
    run = groundling.resume("first", on_event=silent)  # from step 8, with the tracker of before
    found = accumulators.EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()

    def scalars(name: str) -> list[tuple[int, float]]:
        return [(point.step, pytest.approx(point.value, rel=1e-6)) for point in found.Scalars(name)]

    assert logged(run, "step", "loss") == scalars("train/loss")
    assert [step for step, _ in scalars("train/loss")] == list(range(1, 13))
    assert logged(run, "step", "learning_rate") == scalars("train/learning_rate")
    assert logged(run, "evaluation", "validation_loss") == scalars("validation/loss")
    assert [(s["step"], s["copied_share"]) for s in run.samples()] == scalars("sample/copied_share")
    samples = [point.tensor_proto.string_val[0].decode() for point in found.Tensors("sample")]
    assert [text.replace("\n    ", "\n")[4:] for text in samples] == [s["prompt"] + s["text"] for s in run.samples()]


def test_wandb_offline_keeps_its_files_here_and_sends_nothing(
    text_file: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        run = groundling.train(text_file, name="first", track=["wandb"], on_event=silent, **tiny | SHORT)
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()
    (file,) = run.folder.glob("wandb/offline-run-*/run-first-*.wandb")
    content = file.read_bytes()
    for name in ("train/loss", "validation/loss", "validation/bits_per_byte", "verdict"):
        assert name.encode() in content
    best = min(loss for _, loss in logged(run, "evaluation", "validation_loss"))
    assert json.dumps(best).encode() in content


def test_trackio_goes_on_with_its_run(
    text_file: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    settings = tiny | SHORT
    run = groundling.train(text_file, name="first", track=["trackio"], on_event=silent, **settings)
    groundling.resume("first", steps=16, on_event=silent)
    assert capsys.readouterr().out == ""  # standard output is ours
    (name,) = SQLiteStorage.get_runs("groundling")
    assert name.startswith("first-")
    points = [row for row in SQLiteStorage.get_logs("groundling", name) if "train/loss" in row]
    assert [(row["step"], row["train/loss"]) for row in points] == logged(run, "step", "loss")


class Faulty:
    """Fails at its third call."""

    calls = 0

    def __init__(self, run: trackers.Tracked) -> None:
        Faulty.calls = 0

    def log(self, step: int, values: object) -> None:
        Faulty.calls += 1
        if Faulty.calls == 3:
            raise OSError("no space left\nin their cloud")

    def close(self) -> None:
        raise AssertionError("it was left alone")


def test_no_run_is_lost_for_a_tracker(text_file: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers._TRACKERS, "wandb", Faulty)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    events: list[Event] = []
    run = groundling.train(text_file, name="first", track=["wandb"], on_event=events.append, **tiny | SHORT)
    assert run.finished
    assert Faulty.calls == 3
    notices = [event.sentence for event in events if isinstance(event, Notice)]
    assert notices == ["Training continues without wandb, which failed: no space left"]
    assert "no space left" in str(run.metrics())


def test_a_tracker_that_is_not_there_is_one_sentence(
    text_file: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"--track mlflow is unknown. Use one of tensorboard, wandb, trackio"):
        groundling.train(text_file, track=["mlflow"], **tiny)  # type: ignore[list-item]
    settings = tiny | SHORT
    monkeypatch.setitem(trackers._TRACKERS, "trackio", lambda run: 1 / 0)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "trackio" else find_spec(name))
    with pytest.raises(ValueError, match="--track trackio could not start: division by zero"):
        groundling.train(text_file, name="first", track=["trackio"], on_event=silent, **settings)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else find_spec(name))
    missing = r'--track trackio: its library is not installed. Run: pip install "groundling\[trackio\]"'
    with pytest.raises(ValueError, match=missing):
        groundling.train(text_file, name="second", track=["trackio"], on_event=silent, **settings)
    assert not Path("runs/second").exists()
    events: list[Event] = []
    run = groundling.resume("first", on_event=events.append)  # it is not asked for by name, so the run goes on
    assert run.finished
    assert "Training continues without trackio, which could not start" in str(events)
