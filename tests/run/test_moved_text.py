"""A text that was moved between start and resume: the run knows it by its content, wherever it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling.run.run import Run
from groundling.training.events import Event, Notice, Step


def silent(event: Event) -> None:
    pass


def stopped(corpus: Any, settings: dict[str, Any], name: str | None = "first") -> Run:
    def on_event(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        groundling.train(corpus, name=name, on_event=on_event, **settings)
    return groundling.load(name or "prose")


def said(events: list[Event]) -> str:
    return " ".join(event.sentence for event in events if isinstance(event, Notice))


@pytest.mark.parametrize("name", ["first", None])
def test_the_same_command_with_the_new_path_continues_the_run(
    name: str | None, text_file: Path, settings: dict[str, Any]
) -> None:
    stopped(text_file, settings, name)
    moved = text_file.rename(text_file.with_name("War and Peace.txt"))
    events: list[Event] = []
    run = groundling.train(moved, name=name, on_event=events.append, **settings)
    assert run.finished and run.name == (name or "prose")
    assert [path.name for path in Path("runs").iterdir()] == [run.name]
    assert run.config.corpus == run.record.requested.corpus == str(moved)
    assert f"Resuming unfinished run {run.name}" in said(events) and f"is now at {moved}." in said(events)


def test_resume_is_told_where_the_text_is(
    text_file: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(text_file, settings)
    (tmp_path / "else").mkdir()
    moved = text_file.rename(tmp_path / "else" / "book.txt")
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "another"))  # as on another machine
    gone = rf"first is gone: {text_file} no longer exists\. If .*`groundling resume first --corpus PATH`"
    with pytest.raises(ValueError, match=gone):
        groundling.resume("first", on_event=silent)
    with pytest.raises(ValueError, match=gone):
        groundling.load("first").evaluate()
    other = text_file.with_name("other.txt")
    other.write_text("another text " * 300)
    with pytest.raises(ValueError, match=r"other\.txt is not the one that the run first was trained on"):
        groundling.resume("first", corpus=other, on_event=silent)
    assert groundling.load("first").config.corpus == str(text_file)
    run = groundling.resume("first", corpus=moved, on_event=silent)
    assert run.finished and run.config.corpus == str(moved)
    moved = moved.rename(tmp_path / "else" / "again.txt")
    events: list[Event] = []
    assert groundling.resume("first", corpus=moved, on_event=events.append).config.corpus == str(moved)
    assert not any(isinstance(event, Step) for event in events)  # it was finished: only the record changes
    assert groundling.load("first").evaluate()["tokens"] > 0


def test_a_project_that_was_moved_as_a_whole_finds_its_text(
    prose: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "one/texts"):
        (tmp_path / folder).mkdir()
    for name in ("a.txt", "texts/b.md"):
        (tmp_path / "one" / name).write_text(prose[:3000] + name)
    monkeypatch.chdir(tmp_path / "one")
    stopped(["a.txt", "texts"], settings)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "another"))
    monkeypatch.chdir(tmp_path / "two")
    events: list[Event] = []
    run = groundling.resume("first", on_event=events.append)
    assert run.finished
    assert f"The text was moved. Using {tmp_path}/two/a.txt, {tmp_path}/two/texts, which" in said(events)
    monkeypatch.chdir(tmp_path)
    assert groundling.load("two/runs/first").evaluate()["tokens"] > 0


def test_a_run_that_read_the_same_files_otherwise_is_another(prose: str, settings: dict[str, Any]) -> None:
    Path("stories.txt").write_text(prose[:3000] + "\n<|endoftext|>\n" + prose[3000:6000])
    stopped("stories.txt", settings)
    otherwise = (
        r"first exists, and read the same files otherwise: 2 document\(s\) and .*--document-separator\)\. Use ano"
    )
    with pytest.raises(ValueError, match=otherwise):
        groundling.train("stories.txt", name="first", document_separator="", on_event=silent, **settings)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_file_whose_name_is_not_utf8_is_trained_on(prose: str, settings: dict[str, Any]) -> None:
    path = os.fsdecode(b"caf\xe9 \xff.txt")
    Path(path).write_text(prose[:3000])
    run = stopped(path, settings)
    assert run.config.corpus == Path(path).absolute().as_uri()
    run = groundling.train(path, name="first", on_event=silent, **settings)
    assert run.finished and run.evaluate()["tokens"] > 0 and "caf\ufffd \ufffd" in run.report().read_text("utf-8")


def test_only_what_is_gone_is_called_gone(prose: str, settings: dict[str, Any]) -> None:
    for name in ("a.txt", "b.txt"):
        Path(name).write_text(prose[:3000] + name)
    stopped(["a.txt", "b.txt"], settings)
    gone = Path("a.txt").resolve()
    gone.unlink()
    events: list[Event] = []
    assert groundling.resume("first", on_event=events.append).finished
    assert f"{gone} no longer exists. Using the text's tokens from the cache." in said(events)
    assert "b.txt" not in said(events)
