"""Tuned runs are extended, continued by the same command, found with moved files, and told apart by their settings."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling.run.run import Run
from groundling.tasks.prompts import TaskPrompts
from groundling.training.events import Event, Notice, Step
from methods import job


@pytest.fixture(scope="module")
def folder(models_to_tune: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(models_to_tune, tmp_path_factory.mktemp("again") / "models"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskPrompts, "n_validation", 8)


def tune(folder: Path, method: str, out: Path, stop_at: int = 0, **settings: Any) -> tuple[Run, list[Event]]:
    what, events = job(folder, method), list[Event]()

    def tell(event: Event) -> None:
        events.append(event)
        if stop_at and isinstance(event, Step) and event.step == stop_at:
            signal.raise_signal(signal.SIGINT)

    changed = what["settings"] | {"steps": 8, "eval_every": 8, "sample_every": 0} | settings
    run = getattr(groundling, what["verb"])(*what["arguments"], out=out, on_event=tell, **changed)
    return run, events


def steps(run: Run) -> list[int]:
    return [line["step"] for line in run.metrics() if line["event"] == "step"]


@pytest.mark.parametrize("method", ["sft", "dpo", "reward", "grpo", "grpo-reward", "distill", "distill-text"])
def test_the_same_command_continues_and_a_finished_run_is_extended(method: str, folder: Path, tmp_path: Path) -> None:
    stopped, _ = tune(folder, method, tmp_path, stop_at=3)
    run, events = tune(folder, method, tmp_path)
    assert run.folder == stopped.folder and run.finished and steps(run) == list(range(1, 9))
    assert any("Resuming unfinished run" in event.sentence for event in events if isinstance(event, Notice))
    longer = groundling.resume(run, steps=11, on_event=lambda event: None)
    assert longer.finished and steps(longer) == list(range(1, 12))
    assert longer.result is not None and longer.result["step"] == 11
    with pytest.raises(ValueError, match=r"--steps 11: the run .* is already at step 11"):
        groundling.resume(longer, steps=11, on_event=lambda event: None)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_another_setting_is_named(method: str, folder: Path, tmp_path: Path) -> None:
    tune(folder, method, tmp_path, stop_at=3, name="run")
    with pytest.raises(ValueError, match=r"exists with other settings \(--learning-rate 0.003 instead of 0.001\)"):
        tune(folder, method, tmp_path, name="run", learning_rate=1e-3)
    changed = {"adapter": 2} if method == "sft" else {"num_generations": 4}
    expected = r"\(--adapter 0 instead of 2\)" if method == "sft" else r"\(--num-generations 8 instead of 4\)"
    with pytest.raises(ValueError, match=expected):
        tune(folder, method, tmp_path, name="run", **changed)


def test_moved_files_are_found(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.jsonl"
    content = (folder / "chats.jsonl").read_bytes()
    here = tmp_path / "here.jsonl"
    here.write_bytes(content)
    run = groundling.sft(folder / "parent", here, out=tmp_path, name="run", steps=4, on_event=lambda event: None)
    here.rename(moved)
    with pytest.raises((ValueError, OSError), match=r"here\.jsonl"):
        groundling.resume(run, steps=6, on_event=lambda event: None)
    longer = groundling.resume(run, corpus=str(moved), steps=6, on_event=lambda event: None)
    assert steps(longer) == list(range(1, 7)) and longer.config.inputs == (str(moved),)


@pytest.mark.usefixtures("second_a_step")
@pytest.mark.parametrize("method", ["sft", "dpo-kto", "reward", "grpo-reward", "distill-own"])
def test_minutes_decide_when_a_run_ends(method: str, folder: Path, tmp_path: Path) -> None:
    """Of 30 s, 2.5 are kept for pictures, and 4 % for the last evaluation."""
    what = job(folder, method)
    settings = {name: value for name, value in what["settings"].items() if name != "steps"}
    settings |= {"eval_every": 100, "checkpoint_every": 100, "sample_every": 0, "warmup_steps": 1, "log_every": 1}

    verb = getattr(groundling, what["verb"])
    run: Run = verb(*what["arguments"], out=tmp_path, on_event=lambda event: None, minutes=0.5, **settings)
    assert run.finished and run.step == 26
