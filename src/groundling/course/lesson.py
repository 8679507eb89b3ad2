"""What the listings of a chapter call. They run in the course's folder, and remember there what the learner guessed
and measured (`progress.json`)."""

from __future__ import annotations

import inspect
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from groundling.course import progress
from groundling.course.checks import Wrong, check_of, expect_written, solution_of
from groundling.course.measured import measured

F = TypeVar("F", bound=Callable[..., Any])


def course_text() -> str:
    """The text of the course: Tiny Shakespeare, or the one that the learner chose with `--text`.

    Raises `ValueError` or `OSError` if it cannot be read.
    """
    from groundling.data.sources import find_source

    source = find_source(progress.read().text)
    documents = (document for file in source.files for document in source.documents(file))
    return "\n".join("".join(document.chunks) for document in documents)


def shell(command: str) -> None:
    """Run a command of groundling here. `shakespeare` stands for the course's text. A run of its `--name` that is
    finished is not trained again.

    Raises `ValueError` if it fails.
    """
    words = [progress.read().text if word == "shakespeare" else word for word in shlex.split(command)[1:]]
    print(f"$ groundling {shlex.join(words)}", flush=True)
    run = Path("runs", words[words.index("--name") + 1]) if "--name" in words else None
    if run and (run / "result.json").exists():
        print(f"{run} is finished. To train it again, use another --name, or delete the folder.")
    elif run_command(words):
        raise ValueError(f"The command failed: groundling {shlex.join(words)}")


def run_command(words: list[str]) -> int:
    """Run groundling with these words in a process of its own, and print what it prints. Returns its exit code.

    A notebook shows only what this process prints, so the other's output goes through a pipe, unless a terminal shows
    both.
    """
    terminal = sys.stdout.isatty()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "groundling", *words],
        stdout=None if terminal else subprocess.PIPE,
        stderr=None if terminal else subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
    return process.returncode


def predict(name: str, question: str) -> None:
    """Ask for a guess of the figure `name`, once. Nothing is asked where nobody can answer."""
    known = progress.read()
    if name in known.guesses or not (sys.stdin and sys.stdin.isatty()):
        print(f"Guess: {question}")
        return
    answer = input(f"Guess: {question} ")
    try:
        known.guesses[name] = float(answer)
    except ValueError:
        print("That is no number, so it is not kept.")
        return
    progress.write(known)


def show(**figures: float | str) -> None:
    """Print figures, each beside the learner's guess and the range that the course measured."""
    known = progress.read()
    for name, value in figures.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        guess = f"; you guessed {known.guesses[name]:g}" if name in known.guesses else ""
        figure = measured().figures.get(name)
        course = f"; the course measured {figure}" if figure else ""
        print(f"{name.replace('_', ' ')}: {shown}{guess}{course}")
        known.figures[name] = value
    progress.write(known)


def checked(answer: F) -> F:
    """The learner's function if it passes its check, else our own answer, so that the listings below run."""
    name = answer.__name__
    try:
        with suppress(OSError, TypeError):  # no file or cell may have its source
            expect_written(textwrap.dedent(inspect.getsource(answer)), name)
        check_of(name)(answer)
    except Wrong as wrong:
        print(f"{name}: {wrong} Below, the course's own answer is used.")
    except Exception as error:  # whatever a learner's function may raise
        print(f"{name} failed with {type(error).__name__}: {error}. Below, the course's own answer is used.")
    else:
        print(f"{name}: right.")
        return answer
    return solution_of(name)  # type: ignore[return-value]
