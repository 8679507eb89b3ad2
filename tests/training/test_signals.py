"""SIGINT, SIGTERM and SIGHUP, really sent, once and twice, in every phase of a run."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling import storage
from groundling.config import flag

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to another process")

TINY: dict[str, Any] = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 2, "steps": 8, "eval_every": 4,
    "eval_tokens": 64, "checkpoint_every": 4, "sample_tokens": 40, "warmup_steps": 2, "accumulate": 2,
    "device": "cpu", "dtype": "float32", "compile": "off",
}  # fmt: skip

# The process says where it is, and waits there until the signal has come; or twice, for the second one.
PROGRAM = """
    import sys, time
    phase, times = sys.argv.pop(1), int(sys.argv.pop(1))

    def here(*_, **__):
        for _ in range(times):
            received, end = len(answers), time.monotonic() + 20
            print("here", flush=True)
            while len(answers) == received and time.monotonic() < end:
                time.sleep(0.002)

    def before(place, name, nth=1):
        function, count = getattr(place, name), [0]

        def waiting(*arguments, **named):
            count[0] += 1
            if count[0] == nth:
                here()
            return function(*arguments, **named)

        setattr(place, name, waiting)

    from groundling.training import signals
    answers = []
    say = signals.say
    signals.say = lambda sentence: (answers.append(sentence), say(sentence))

    if phase == "start":
        import importlib.abc

        class Finder(importlib.abc.MetaPathFinder):
            def find_spec(self, name, *_):
                if name == "cyclopts":
                    here()

        sys.meta_path.insert(0, Finder())
    else:
        import torch
        from groundling.model import weights_file
        from groundling.run import train
        from groundling.run.run import Run
        from groundling.tasks import pretraining
        from groundling.training import step
        from groundling.training import trainer
        place = {{
            "reading": (train, "prepare"), "planning": (train, "plan"),
            "compiling": (trainer, "choose_forward"), "training": (torch.nn.utils, "clip_grad_norm_", 3),
            "between passes": (step, "_dropout_seed", 5), "evaluation": (pretraining, "score", 2),
            "sampling": (pretraining, "stream", 2), "saving": (weights_file, "save_file", 1),
            "finishing": (Run, "plot"),
        }}[phase]
        before(*place)
    from groundling.__main__ import main
    main()
"""
BEFORE = ["start", "reading", "planning", "compiling"]
AMID = ["training", "between passes", "evaluation", "sampling", "saving"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send(phase: str, numbers: list[signal.Signals], text: Path) -> tuple[int, str, str, float]:
    """Status, standard output and error of a run that got the signals in this phase, and seconds after the last."""
    words = [word for name, value in TINY.items() for word in (flag(name), str(value))]
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM.format()), phase, str(len(numbers))]
    arguments = ["train", str(text), "--name", "run", *words]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = ""
        for number in numbers:
            for line in process.stdout:
                out += line
                if line == "here\n":
                    break
            process.send_signal(number)
        sent = time.monotonic()
        rest, err = process.communicate(timeout=60)
    return process.returncode, out + rest, err, time.monotonic() - sent


def assert_whole() -> None:
    """Whatever stands there is whole, and the run comes to its end."""
    folder = Path("runs/run")
    for checkpoint in folder.glob("checkpoints/step-*"):
        storage.verify(checkpoint)
    if (folder / "config.json").exists():
        run = groundling.load("run")
        if not run.finished:
            run = groundling.resume("run", on_event=lambda event: None)
        assert run.finished
        assert [line["step"] for line in run.metrics() if line["event"] == "step"] == list(range(1, 9))


def check_once(phase: str, number: signal.Signals, text: Path) -> None:
    status, out, err, seconds = send(phase, [number], text)
    assert seconds < 10
    assert "Traceback" not in err
    if phase in BEFORE:
        assert status == 128 + number
        assert err.strip().count("\n") == 0
        assert "run the same command again" in err
    elif phase in AMID:
        assert status == 128 + number
        assert "To continue:  groundling resume run" in out
        step = {"training": 3, "between passes": 2, "evaluation": 4, "sampling": 4, "saving": 4}[phase]
        assert groundling.load("run").checkpoints.steps()[-1] == step
    else:
        assert status == 0
        assert "Done: 8 steps" in out
    assert_whole()


def check_twice(phase: str, numbers: list[signal.Signals], text: Path) -> None:
    status, _, err, seconds = send(phase, numbers, text)
    assert status == -numbers[1]  # which a shell calls 128 + signal
    assert seconds < 3
    assert "Traceback" not in err
    assert_whole()


@pytest.mark.parametrize(
    ("phase", "number"),
    [("start", 15), ("between passes", 1)],
)
def test_the_first_signal_saves_and_says_how_to_continue(phase: str, number: int, text_file: Path) -> None:
    check_once(phase, signal.Signals(number), text_file)


@pytest.mark.slow
def test_the_second_signal_ends_it_at_once(text_file: Path) -> None:
    check_twice("saving", [signal.SIGINT, signal.SIGTERM], text_file)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("phase", [*BEFORE, *AMID, "finishing"])
def test_every_signal_in_every_phase(phase: str, number: signal.Signals, text_file: Path) -> None:
    check_once(phase, number, text_file)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("phase", [*AMID, "finishing"])
def test_every_signal_twice_in_every_phase(phase: str, number: signal.Signals, text_file: Path) -> None:
    check_twice(phase, [number, number], text_file)


def test_a_terminal_that_is_closed_loses_nothing(text_file: Path) -> None:
    """SIGHUP, and from then on every write to the terminal fails."""
    words = [word for name, value in (TINY | {"steps": 100_000}).items() for word in (flag(name), str(value))]
    command = [sys.executable, "-m", "groundling", "train", str(text_file), "--name", "run", *words]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, command)
    seen = b""
    while b"lr " not in seen:  # the live line
        seen += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    run = groundling.load("run")
    assert run.metrics()[-1]["event"] == "paused"
    assert run.checkpoints.steps()[-1] == run.metrics()[-1]["step"]


def test_what_is_ignored_stays_ignored() -> None:
    """As SIGHUP is under `nohup`."""
    from groundling.training.signals import stop_request

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
