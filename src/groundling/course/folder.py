"""The learner's folder: their files of each chapter, and the check of what they wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from groundling import storage
from groundling.course import progress
from groundling.course.chapter import Chapter, chapter
from groundling.course.notebook import notebook
from groundling.course.page import page
from groundling.course.program import program
from groundling.escape import command

SECONDS = 60  # for the check of a file


def start(folder: Path, number: int, text: str | None = None) -> list[Path]:
    """Write a chapter's program, notebook and page into `folder`, and remember the text of the course if one is given.

    A program or notebook that is there already is the learner's own and stays. Returns the paths: program, notebook,
    page. Raises `ValueError` if there is no such chapter.
    """
    wanted = chapter(number)
    known = progress.read(folder)
    if text is not None:
        known.text = text
    storage.make_folder(folder, "--folder")
    progress.write(known, folder)
    stem = folder / f"chapter_{number}"
    ours = is_shakespeare(known.text)
    written = {
        ".py": program(wanted, shakespeare=ours),
        ".ipynb": notebook(wanted, shakespeare=ours),
        ".html": page(wanted),
    }
    for ending, content in written.items():
        path = stem.with_suffix(ending)
        if ending == ".html" or not path.exists():
            storage.write_file(path, content)
    return [stem.with_suffix(ending) for ending in written]


def is_shakespeare(text: str) -> bool:
    """Whether the text is Tiny Shakespeare, by its name or by the file's hash."""
    from groundling.data.sources import SHAKESPEARE_SHA256

    return text == "shakespeare" or (Path(text).is_file() and storage.sha256(Path(text)) == SHAKESPEARE_SHA256)


def program_of(folder: Path, number: int) -> Path:
    """The learner's program of a chapter. Raises `ValueError` if the chapter was not started here."""
    path = folder / f"chapter_{chapter(number).number}.py"
    if not path.is_file():
        start = command("course", "start", number)
        raise ValueError(f"There is no file {path}. Start the chapter first: `{start}`.")
    return path


def check(folder: Path, number: int, file: Path | None = None) -> Iterator[tuple[str, str | None]]:
    """Name of each exercise of a chapter, and what is wrong with the learner's answer: a sentence, or None.

    `file` is a program or a notebook; by default the program in `folder`. It runs in a process of its own. Passed
    exercises are remembered. Raises `ValueError` if the file is missing or not readable.
    """
    wanted = chapter(number)
    path = file or program_of(folder, number)
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Check the path.")
    known = progress.read(folder)
    for name, wrong in _judged(path, wanted):
        if wrong is None and name not in known.passed:
            known.passed.append(name)
            storage.make_folder(folder, "--folder")
            progress.write(known, folder)
        yield name, wrong


def _judged(path: Path, wanted: Chapter) -> Iterator[tuple[str, str | None]]:
    """Each exercise's verdict. Those after one that takes too long are judged by the next process."""
    waiting = list(wanted.exercises)
    while waiting:
        command = [sys.executable, "-P", "-m", "groundling.course.judge", str(path), *waiting]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS)
            output, late = ended.stdout, ""
        except subprocess.TimeoutExpired as stopped:
            output = (stopped.stdout or b"").decode() if isinstance(stopped.stdout, bytes) else stopped.stdout or ""
            late = f"Its check did not end within {SECONDS} seconds. Look for a loop that never ends."
        for line in output.splitlines():
            if (verdict := _verdict(line)) and waiting and verdict[0] == waiting[0]:
                yield waiting.pop(0), verdict[1]
        if waiting:
            yield waiting.pop(0), late or "Python ended while it ran."


def _verdict(line: str) -> tuple[str, str | None] | None:
    """What the judge said on a line, which may be something that the learner's file prints."""
    try:
        said = json.loads(line)
        return said["exercise"], said["wrong"]
    except (ValueError, TypeError, KeyError):
        return None
