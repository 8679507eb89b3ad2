"""Post-training is killed in the midst of a rollout, a reward, a reference, a loss, an evaluation and a save, and is
interrupted by Ctrl-C: the same command ends with the same bits."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import groundling
from groundling import storage
from groundling.experiments.compare_runs import first_difference
from groundling.inference import rollouts
from groundling.model import weights_file
from groundling.run import session
from groundling.run.run import Run
from groundling.tasks import dpo, prompts
from groundling.tasks.dpo import Dpo
from groundling.tasks.grpo import Grpo
from groundling.tasks.prompts import TaskPrompts
from groundling.training.events import Evaluation, Event, Step
from methods import job

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or sys.platform == "darwin", reason="processes are forked to be killed"
)
STEPS = 12

KILLS: dict[str, tuple[str, Any, str, list[int]]] = {
    "a rollout": ("grpo", rollouts, "_draw", [3, 60]),
    "a reward": ("grpo", TaskPrompts, "rewards", [1, 9]),
    "the reward model": ("grpo-reward", prompts, "rewards_of", [1, 9]),
    "the reference": ("dpo", dpo, "_logprobs", [1, 2]),
    "keeping the reference": ("dpo", dpo, "write_tensors", [1]),
    "the loss": ("dpo", Dpo, "loss", [3, 9]),
    "the loss of replies": ("grpo", Grpo, "loss", [2, 6]),
    "an evaluation": ("grpo", Grpo, "_kl", [1, 2]),
    "a save": ("grpo", weights_file, "save_file", [3, 4]),
    "the step of an adapter": ("sft-adapter", torch.optim.AdamW, "step", [2, 9]),
}
"""A method; whose function is called when a kill strikes; and at which calls, one session after another."""


@pytest.fixture(scope="module")
def folder(models_to_tune: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(models_to_tune, tmp_path_factory.mktemp("killed") / "models"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> Callable[[str], Run]:
    """The run that nothing disturbs, made once for each method."""
    runs = dict[str, Run]()

    def whole(method: str) -> Run:
        if method not in runs:
            runs[method] = train(folder, method, f"whole-{method}")
        return runs[method]

    return whole


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_finish", lambda run, *_: storage.write_json(run.folder / "done.json", {}))
    monkeypatch.setattr(TaskPrompts, "n_validation", 8)


def train(folder: Path, method: str, name: str, on_event: Any = lambda event: None) -> Run:
    what = job(folder, method)
    settings = what["settings"] | {"steps": STEPS, "checkpoint_every": 5, "eval_every": 6, "sample_every": 6}
    run: Run = getattr(groundling, what["verb"])(
        *what["arguments"], name=name, out=folder, on_event=on_event, **settings
    )
    return run


def killed(folder: Path, method: str, name: str, plant: Callable[[pytest.MonkeyPatch], Any]) -> bool:
    """Whether a training in a fork of this process was killed, before its end."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            on_event = plant(pytest.MonkeyPatch())
            train(folder, method, name, on_event or (lambda event: None))
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status != 0


def at_call(place: Any, name: str, number: int, action: Callable[[], object]) -> Callable[[pytest.MonkeyPatch], None]:
    """Act at a call of a function, from the first on, once half of its work is done: after it returns."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        function, calls = getattr(place, name), [0]

        def striking(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            calls[0] += 1
            if calls[0] == number:
                action()
            return result

        patch.setattr(place, name, striking)

    return plant


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("place", KILLS)
def test_a_kill_in_the_midst_of_anything_loses_nothing(place: str, folder: Path, whole: Callable[[str], Run]) -> None:
    method, owner, function, calls = KILLS[place]
    name = f"{method}-{place.replace(' ', '-')}"
    for call in calls:
        assert killed(folder, method, name, at_call(owner, function, call, die)), call
    assert not killed(folder, method, name, lambda patch: None)
    assert first_difference(folder / name, whole(method).folder) is None


@pytest.mark.parametrize("kind", [Step, Evaluation])
def test_a_kill_before_and_after_an_evaluation_loses_nothing(
    kind: type[Event], folder: Path, whole: Callable[[str], Run]
) -> None:
    def strike(event: Event) -> None:
        if isinstance(event, kind) and event.step == 6:  # type: ignore[attr-defined]
            die()

    name = f"grpo-at-{kind.__name__}"
    assert killed(folder, "grpo", name, lambda patch: strike)
    assert not killed(folder, "grpo", name, lambda patch: None)
    assert first_difference(folder / name, whole("grpo").folder) is None


@pytest.mark.parametrize(("place", "call"), [("a rollout", 70), ("a reward", 8), ("an evaluation", 2)])
def test_an_interrupted_run_stops_in_that_step_and_resumes(
    place: str, call: int, folder: Path, whole: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, owner, function, _ = KILLS[place]
    at: list[int] = []

    def interrupt() -> None:
        at.append(steps[-1] if steps else 0)
        signal.raise_signal(signal.SIGINT)

    steps: list[int] = []
    name = f"interrupted-{place.replace(' ', '-')}"
    with monkeypatch.context() as patch:
        at_call(owner, function, call, interrupt)(patch)
        run = train(folder, method, name, lambda event: steps.append(event.step) if isinstance(event, Step) else None)
    assert run.stopped_by == signal.SIGINT
    after = run.checkpoints.steps()[-1] - at[0]
    assert after == 0 if place == "a rollout" else after in (0, 1)
    train(folder, method, name)
    assert first_difference(run.folder, whole(method).folder) is None
