"""What a learner does: start a chapter, run it, have answers checked, see what is done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from groundling.__main__ import main
from groundling.course import folder, lesson, progress
from groundling.course.chapter import chapters
from groundling.course.notebook import notebook
from groundling.course.page import page

FOLDER = Path("course")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    with pytest.raises(SystemExit) as ended:
        main(["course", *words])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


def test_a_chapter_is_started_checked_and_listed(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = said(capsys, "start", "1", "--text", str(text_file))
    assert code == 0
    assert "groundling course check 1" in out
    assert progress.read(FOLDER).text == str(text_file)
    program, own_notebook = FOLDER / "chapter_1.py", FOLDER / "chapter_1.ipynb"
    program.write_text(program.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    before = own_notebook.read_bytes()
    said(capsys, "start", "1")
    assert program.read_text(encoding="utf-8").endswith("# mine\n"), "the learner's file was overwritten"
    assert own_notebook.read_bytes() == before
    code, out = said(capsys, "check", "1")
    assert code == 1
    assert "You have not written it yet." in out
    known = progress.read(FOLDER)
    known.passed = list(chapters()[1].exercises)
    progress.write(known, FOLDER)
    code, out = said(capsys)
    assert code == 0
    assert "✓" in out
    assert "groundling course start 2" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("start", "99"), "There is no chapter 99. Choose one of 1,"),
        (("check", "1"), "Start the chapter first: `groundling course start 1`."),
        (("run", "1"), "Start the chapter first: `groundling course start 1`."),
        (("check", "1", "--file", "nowhere.py"), "There is no file nowhere.py"),
        (("start", "1", "--text", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_mistakes_get_one_sentence(words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = said(capsys, *words)
    assert code == 1
    assert sentence in out
    assert len(out.strip().splitlines()) == 1
    assert not FOLDER.exists()


ANSWERS = """
print("something of the learner's own")
def add(a, b):
    import time
    time.sleep(60)
def double(a):
    print('{"exercise": "double", "wrong": 1}'[:5])
    raise KeyError("a")
def half(a):
    return a / 2
raise SystemExit("listings are not run")
"""


def test_each_answer_is_judged_whatever_the_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With checks of this test's own, in a module that the judge's process finds."""
    (tmp_path / "sitecustomize.py").write_text(
        "from groundling.course import checks\n"
        "checks.check_of = {'add': lambda f: f(1, 2), 'double': lambda f: f(1), 'half': lambda f: f(2),\n"
        "                   'missing': None}.get\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(folder, "SECONDS", 5)
    (tmp_path / "answers.py").write_text(ANSWERS)

    class Four:
        exercises = ("half", "add", "double", "missing")

    verdicts = dict(folder._judged(tmp_path / "answers.py", Four))  # type: ignore[arg-type]
    assert verdicts["half"] is None
    assert "did not end within" in verdicts["add"]
    assert verdicts["double"] == "It failed in line 8 with KeyError: 'a'."
    assert verdicts["missing"] == "The file has no function missing."


def test_a_notebook_is_valid_and_can_be_checked(tmp_path: Path) -> None:
    for chapter in chapters().values():
        nbformat.validate(nbformat.reads(notebook(chapter), as_version=4))
    path = tmp_path / "mine.ipynb"
    path.write_text(notebook(chapters()[1]), encoding="utf-8")
    assert set(dict(folder.check(FOLDER, 1, path)).values()) == {"You have not written it yet."}
    path.write_text('{"cells": 3}', encoding="utf-8")
    assert all("is not a notebook" in str(wrong) for wrong in dict(folder.check(FOLDER, 1, path)).values())


def test_the_page_has_every_block_and_no_script() -> None:
    for chapter in chapters().values():
        content = page(chapter)
        assert content.count('class="exercise"') == len(chapter.exercises)
        assert "<script" not in content
        assert "{{" not in content


def test_guesses_are_shown_beside_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    answers = iter(["many", "4.2"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    lesson.predict("first", "How much?")
    assert "not kept" in capsys.readouterr().out
    lesson.predict("first", "How much?")
    lesson.predict("first", "How much?")  # asked once
    lesson.show(first=4.5)
    assert "first: 4.5; you guessed 4.2" in capsys.readouterr().out
    assert progress.read().guesses == {"first": 4.2}


def test_an_answer_that_is_wrong_is_replaced_by_ours(capsys: pytest.CaptureFixture[str]) -> None:
    name = chapters()[1].exercises[0]

    def answer(*_: Any) -> None: ...

    answer.__name__ = name
    assert lesson.checked(answer) is not answer
    assert "should return" in capsys.readouterr().out

    def count_pairs(text: str) -> None: ...

    assert lesson.checked(count_pairs) is not count_pairs
    assert capsys.readouterr().out == (
        "count_pairs: You have not written it yet. Below, the course's own answer is used.\n"
    )


def test_damaged_progress_is_one_sentence() -> None:
    for content in ('{"text": 1}', '{"other": 2}', "[]"):
        Path(progress.FILE).write_text(content)
        with pytest.raises(ValueError, match="is no progress of a course"):
            progress.read()


def test_a_command_prints_through_a_notebook_too() -> None:
    code = "from groundling.course import shell; shell('groundling --version')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1].startswith("groundling ")
    assert json.dumps(done.stderr) == '""'
