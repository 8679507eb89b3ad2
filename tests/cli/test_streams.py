"""Standard streams that end or were never there, and what an environment says about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling.config import flag
from groundling.escape import unescaped
from tiny import TINY

COMMAND = [sys.executable, "-m", "groundling"]
SHORT = TINY | {"steps": 8, "eval_every": 4, "checkpoint_every": 4, "warmup_steps": 0, "sample_tokens": 0}
TRAIN = ["train", "prose.txt", "--name=x", *(f"{flag(name)}={value}" for name, value in SHORT.items())]


@pytest.mark.usefixtures("text_file")
def test_training_continues_without_its_reader() -> None:
    with subprocess.Popen([*COMMAND, *TRAIN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (
        0, "\nnote: The output cannot be written (broken pipe). Continuing without it.\n",
    )  # fmt: skip
    assert groundling.load("x").finished


@pytest.mark.skipif(os.name == "nt", reason="pythonw has no shell to close its streams")
@pytest.mark.usefixtures("text_file")
def test_training_needs_no_streams() -> None:
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, *TRAIN])
    run = groundling.load("x")
    assert done.returncode == 0 and run.finished
    assert [line["step"] for line in run.metrics() if line["event"] == "step"] == list(range(1, 9))


@pytest.mark.parametrize("command", ["sample first --max-new-tokens=2", "eval first --json", "runs", "chat first"])
@pytest.mark.usefixtures("first")
def test_commands_need_no_streams(command: str, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli(*command.split()).status == 0


def test_without_standard_input_there_is_no_text_in_it(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match=r"^Standard input is closed\. Give the path of a file\.$"):
        groundling.train("-")
    assert cli("train", "-").err == "groundling: Standard input is empty. Pipe a text into it, or give a file.\n"


@pytest.mark.parametrize("columns", ["0", "-1", "²", "many", "9" * 5000])
def test_a_terminal_of_no_width_has_80_columns(columns: str, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    expected = cli("--help").out
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    assert cli("--help").out == expected and "Train a language model" in expected


def test_arguments_are_utf8_in_every_locale(first: groundling.Run) -> None:
    typed = os.fsencode("Größe\\n").decode("ascii", "surrogateescape")
    assert unescaped(typed) == "Größe\n" and unescaped("a\udcff") == "a\udcff"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["sample", "first", "--prompt=Größe", "--unknown=skip", "--max-new-tokens=1", "--seed=1", "--json"]
    done = subprocess.run([*COMMAND, *words], env=os.environ | plain, capture_output=True)
    assert json.loads(done.stdout)[0]["prompt"] == "Größe", done.stderr


def test_files_of_the_working_folder_are_not_taken_for_libraries(first: groundling.Run) -> None:
    for name in ("torch", "numpy", "json", "random"):
        Path(f"{name}.py").write_text("raise SystemExit('mine')\n")
    done = subprocess.run([*COMMAND, "explain", "first", "--json"], capture_output=True, text=True)
    assert json.loads(done.stdout)["step"] == first.step == 4, done.stderr
