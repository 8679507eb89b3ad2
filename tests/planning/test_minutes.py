"""`--minutes` as a user meets it: planned before, on time, judged after."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling.__main__ import main
from groundling.run import start
from groundling.training.events import Event, Planned, Started
from groundling.training.state import TrainState

COMMAND = [sys.executable, "-m", "groundling"]
MODEL: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 8, "device": "cpu", "dtype": "float32",
    "sample_tokens": 12, "eval_tokens": 1024,
}  # fmt: skip


def flags(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in ("--" + name.replace("_", "-"), str(value))]


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


def test_a_run_ends_on_time_with_its_rate_at_the_floor(text_file: Path) -> None:
    start = time.perf_counter()
    done = subprocess.run(
        [*COMMAND, "train", str(text_file), "--minutes", "0.3", *flags(MODEL)], capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert abs(seconds - 18) < 10  # 5 where nothing else runs; here other tests do
    folder = Path("runs/prose")
    (plan,) = lines(folder, "planned")
    assert plan["low"] < plan["loss"] < plan["high"]
    assert f"plan    {0.3:g} minutes, until {plan['ends'][11:19]}" in done.stdout
    steps = lines(folder, "step")
    assert steps[-1]["learning_rate"] < 0.05 * max(step["learning_rate"] for step in steps)
    assert lines(folder, "evaluation")[-1]["step"] == steps[-1]["step"]
    result = json.loads((folder / "result.json").read_text())
    assert result["forecast"] in done.stdout
    assert f"Actual: {result['elapsed'] / 60:.2f} min" in result["forecast"]


@pytest.mark.usefixtures("second_a_step")
def test_a_stopped_run_keeps_its_plan_and_its_clock(text_file: Path) -> None:
    class Stop(Exception):
        pass

    def stop(event: Event) -> None:
        if isinstance(event, Started):
            raise Stop

    settings = MODEL | {"minutes": 0.2}
    with pytest.raises(Stop):
        groundling.train(text_file, on_event=stop, **settings)
    planned = groundling.load("prose").config
    events: list[Event] = []
    run = groundling.train(text_file, on_event=events.append, **settings)
    assert run.name == "prose"
    assert run.config == planned  # the plan is not made again
    assert not any(isinstance(event, Planned) for event in events)
    assert run.finished and run.step == 9  # of 12 s, 2.5 are kept for pictures, and 4 % for the last evaluation


@pytest.mark.usefixtures("second_a_step")
def test_a_finished_run_can_be_given_more_minutes(
    text_file: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = groundling.train(text_file, on_event=lambda _: None, **tiny)
    longer = groundling.resume(run, minutes=1, on_event=lambda _: None)
    assert longer.result is not None
    assert longer.result["step"] == longer.result["elapsed"] == 58  # of 60 s; 2.5 are kept for pictures
    monkeypatch.setattr(start, "read_state", lambda _: TrainState(step=400, elapsed=600.0))
    with pytest.raises(ValueError, match=r"--minutes 5: the run prose has already trained for 10\.0 minutes"):
        groundling.resume(longer, minutes=5, on_event=lambda _: None)
    with pytest.raises(ValueError, match="Use --minutes or --steps, not both"):
        groundling.resume(longer, minutes=50, steps=1000)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--minutes", "5", "--steps", "7"], "Use --minutes or --steps, not both"),
        (["--minutes", "0.01"], "--minutes must be at least 0.2"),
        (["--minutes", "-3"], "--minutes must be at least 0.2"),
        (["--minutes", "soon"], "--minutes"),
    ],
)
def test_minutes_that_cannot_be(
    arguments: list[str], sentence: str, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", str(text_file), *arguments])
    assert end.value.code in (1, 2)
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error
    assert not Path("runs").exists()
