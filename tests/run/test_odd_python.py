"""A run in a Python process, a file system or a time zone where somebody else has changed what is usual."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import groundling
from groundling.run import start
from groundling.run.run import Run
from groundling.training.clock import local_time
from groundling.training.events import Event, Finished, Notice
from tiny import TINY

pytestmark = pytest.mark.usefixtures("pictures")

SHORT = TINY | {"steps": 4, "eval_every": 2, "checkpoint_every": 2, "warmup_steps": 0, "sample_tokens": 0}


def silent(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def trained(prose: str, tmp_path_factory: pytest.TempPathFactory, pictures: None) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "prose.txt").write_text(prose, encoding="utf-8", newline="")
    return groundling.train(folder / "prose.txt", name="first", out=folder, on_event=silent, **SHORT)


@contextmanager
def changed(set: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    set(value)
    try:
        yield
    finally:
        set(before)


MODES: dict[str, list[Callable[[], Any]]] = {
    "no gradients, float64": [
        lambda: changed(torch.set_grad_enabled, False, True),
        lambda: changed(torch.set_default_dtype, torch.float64, torch.float32),
    ],
    "inference, deterministic": [
        torch.inference_mode, lambda: changed(torch.use_deterministic_algorithms, True, False)
    ],
    "a default device": [lambda: changed(torch.set_default_device, "meta", None)],
    "a device as context": [lambda: torch.device("meta")],
}  # fmt: skip


def twice(text: Path, name: str) -> tuple[bytes, float, str]:
    """The weights of a run that was trained and resumed, its loss, and what it generates."""
    groundling.train(text, name=name, on_event=silent, **SHORT | {"steps": 2, "eval_every": 1})
    run = groundling.resume(name, steps=3, on_event=silent)
    weights = (run.checkpoints.path(3) / "model.safetensors").read_bytes()
    return weights, run.evaluate()["loss"], run.generate("The ", max_new_tokens=9, seed=1)


def test_a_notebook_that_changed_pytorch_trains_the_same_bits(text_file: Path) -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.empty(0).device,
        )

    usual = twice(text_file, "usual")
    for mode, contexts in MODES.items():
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            before = state()
            assert twice(text_file, mode.replace(" ", "-").replace(",", "")) == usual, mode
            assert state() == before, mode


def test_values_of_other_types_are_named(trained: Run, text_file: Path) -> None:
    with (
        text_file.open() as file,
        pytest.raises(TypeError, match=r"^A corpus is a path or a list of paths, not TextIO"),
    ):
        groundling.train(file)  # type: ignore[arg-type]
    for corpus in (b"prose.txt", [b"prose.txt"], 5, [text_file, None]):
        with pytest.raises(TypeError, match=r"^A corpus is a path or a list of paths"):
            groundling.train(corpus)  # type: ignore[arg-type]
    for prompt in (None, b"The"):
        with pytest.raises(TypeError, match=f"^The prompt must be a str, not {type(prompt).__name__}\\.$"):
            trained.generate(prompt)  # type: ignore[arg-type]
    for verb, arguments, settings, sentence in (
        (groundling.load, (5,), {}, r"^A run is its name or a path, not int\.$"),
        (groundling.sft, (None, "x.jsonl"), {}, r"^A run is its name or a path, not NoneType\.$"),
        (groundling.train, (text_file,), {"name": 3, "steps": 1}, r"^A name must be a str, not int\.$"),
        (groundling.train, (text_file,), {"track": "wandb"}, r"^Trackers are a list, such as \['wandb'\]\.$"),
    ):
        with pytest.raises(TypeError, match=sentence):
            verb(*arguments, **settings)


def test_a_run_ends_with_its_pictures(trained: Run) -> None:
    assert (trained.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (trained.folder / "report.html").exists()


def test_a_picture_that_fails_does_not_fail_the_training(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("No ink. Buy some.")

    monkeypatch.setattr(Run, "plot", fail)
    events: list[Event] = []
    run = groundling.train(text_file, name="x", on_event=events.append, **SHORT)
    assert run.finished and (run.folder / "report.html").exists()
    assert [event.sentence for event in events if isinstance(event, Notice)] == [
        "The plot could not be made: No ink. To make it: `groundling plot x`."
    ]
    monkeypatch.setattr(Run, "report", fail)
    run = groundling.resume("x", steps=6, on_event=events.append)
    assert run.finished and isinstance(events[-1], Finished) and events[-1].report == ""


def test_only_an_obstacle_of_the_run_asks_for_another_name(
    trained: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.folder, "runs/first")
    with pytest.raises(ValueError, match=r"exists and is finished\. .* Use another --name\.$"):
        groundling.train(text_file, name="first", on_event=silent, **SHORT)
    Path("runs/first/config.json").write_text("[]")
    Path("runs/first/tokenizer.json").write_text("[]")
    for file in Path("runs/first/checkpoints").rglob("manifest.json"):
        file.unlink()
    with pytest.raises(ValueError, match=r"none can be read: .* Use another --name\.$"):
        groundling.train(text_file, name="first", on_event=silent, **SHORT)

    def fail(*_: object) -> None:
        raise ValueError("The sky is red.")

    monkeypatch.setattr(start, "repair", fail)
    with pytest.raises(ValueError, match=r"^The sky is red\.$"):
        groundling.train(text_file, name="x", on_event=silent, **SHORT)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="time zones are not read from TZ")
def test_a_time_zone_that_cannot_be_is_utc(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for zone, hours in (("UTC+25", 0), ("XYZ-3", 3)):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert local_time().utcoffset() == timedelta(hours=hours)
            run = groundling.train(text_file, name=f"x{hours}", on_event=silent, **SHORT)
            assert run.record.created.endswith("+00:00")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_link_to_a_run_is_the_run_by_its_own_name(trained: Run) -> None:
    shutil.copytree(trained.folder, "disk/big")
    Path("runs").mkdir()
    os.symlink(Path("disk/big").absolute(), "runs/small")
    for reference in ("small", "runs/small", Path("runs/small").absolute(), "runs/small/config.json"):
        run = groundling.load(reference)
        assert (run.name, run.reference, run.folder) == ("small", "small", Path("runs/small").absolute())
    assert groundling.resume("small", steps=5, on_event=silent).reference == "small"
    assert [row["name"] for row in groundling.runs()] == ["small"]
    assert Run(Path("disk/big")).checkpoints.steps()[-1] == 5
    shutil.move("disk/big/checkpoints", "disk/other")
    os.symlink(Path("disk/other").absolute(), "disk/big/checkpoints")
    with pytest.raises(ValueError, match=r"is a link that leads out of its folder, .* Only the whole folder may be"):
        groundling.load("small")


def test_a_path_in_a_run_is_the_run(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained.folder, "x")
    for path in ("x/config.json", "x/metrics.jsonl", "x/report.html", "x/checkpoints", "x/checkpoints/best.json"):
        assert groundling.load(path).folder == Path("x").absolute() and groundling.load(path).chosen is None
    checkpoint = Path("x/checkpoints/step-000002").absolute()
    for name in ("", "model.safetensors", "state.json", "config.json"):
        assert groundling.load(checkpoint / name).chosen == checkpoint
    Path("x/notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"No run 'x/notes.txt'"):
        groundling.load("x/notes.txt")
    for folder, chosen in (("x", None), ("checkpoints", None), ("step-000002", checkpoint)):
        monkeypatch.chdir(folder)
        assert groundling.load(".").chosen == chosen and groundling.load(".").name == "x"
