"""A text that was changed between start and resume: what differs is said, and going on with it is recorded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling.data.fingerprint import difference, fingerprint_of, first_difference_at
from groundling.data.sources import find_source
from groundling.run.run import Run
from groundling.training.events import Event, Notice, Step


def silent(event: Event) -> None:
    pass


def stopped(corpus: Path, settings: dict[str, Any]) -> Run:
    """A run that was ended by an error in its third step, so that it goes on from the second."""

    def on_event(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        groundling.train(corpus, name="first", on_event=on_event, **settings)
    return groundling.load("first")


def test_one_file_says_where_it_parts_and_can_be_accepted(text_file: Path, settings: dict[str, Any]) -> None:
    run = stopped(text_file, settings)
    old = text_file.read_bytes()
    cut = old.index(b"\n", 5000) + 1
    text_file.write_bytes(old[:cut] + b"one more line\n" + old[cut:])
    place = f"and differs from line {old[:cut].count(b'%c' % 10) + 1:,} on (byte {cut:,})"
    told = re.escape(f"it had {len(old):,} bytes and has {len(old) + 14:,} bytes now, {place}.")
    for use in (
        lambda: groundling.resume("first", on_event=silent),
        lambda: groundling.train(text_file, on_event=silent, name="first", **settings),  # the same command again
        lambda: groundling.load("first").evaluate(),
    ):
        with pytest.raises(ValueError, match=told + r".*groundling resume first --accept-changed-text"):
            use()
    assert run.checkpoints.steps() == [2]  # nothing was lost, nothing begun

    before = groundling.load("first").record.corpus
    events: list[Event] = []
    run = groundling.resume("first", accept_changed_text=True, on_event=events.append)
    assert run.finished
    assert run.record.former_texts == [before.model_copy(update={"contents": []})]
    assert run.record.corpus.since == 2
    assert run.record.corpus.fingerprint == fingerprint_of(find_source(text_file)).fingerprint
    sentence = "The training text changed at step 2 (--accept-changed-text)"
    assert any(isinstance(event, Notice) and event.sentence.startswith(sentence) for event in events)
    assert any(line["event"] == "notice" and line["sentence"].startswith(sentence) for line in run.metrics())
    assert run.step == 4  # the best one of the new text
    assert len([line for line in run.metrics() if line["event"] == "checked"]) == 2
    assert groundling.resume("first", steps=5, on_event=silent).finished  # it is the run's own text now


def test_a_text_that_the_tokenizer_does_not_cover_is_not_accepted(text_file: Path, settings: dict[str, Any]) -> None:
    stopped(text_file, settings)
    text_file.write_text(text_file.read_text("utf-8") + "☃", encoding="utf-8", newline="")
    before = Path("runs/first/config.json").read_bytes()
    with pytest.raises(ValueError, match=r"first cannot continue with the changed text.*'☃' \(U\+2603, snowman\)"):
        groundling.resume("first", accept_changed_text=True, on_event=silent)
    assert Path("runs/first/config.json").read_bytes() == before


def test_without_a_name_a_changed_text_is_no_reason_for_a_second_run(text_file: Path, settings: dict[str, Any]) -> None:
    def on_event(event: Event) -> None:
        if isinstance(event, Step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        groundling.train(text_file, on_event=on_event, **settings)
    text_file.write_bytes(text_file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"it had 30,0\d\d bytes and has 29,9\d\d bytes now, and differs from line"):
        groundling.train(text_file, on_event=silent, **settings)
    assert [path.name for path in Path("runs").iterdir()] == ["prose"]


@pytest.fixture
def books(tmp_path: Path, prose: str) -> Path:
    (tmp_path / "books").mkdir()
    for i, name in enumerate("abcde"):
        (tmp_path / "books" / f"{name}.txt").write_text(prose[300 * i : 300 * (i + 1)], encoding="utf-8")
    return tmp_path / "books"


def change(books: Path, kind: str) -> None:
    if kind == "added":
        (books / "f.txt").write_text("one more")
    elif kind == "removed":
        (books / "b.txt").unlink()
    elif kind == "edited":
        (books / "b.txt").write_text("something else")
        (books / "c.txt").write_text("again")
    else:
        (books / "a.txt").rename(books / "z.txt")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("added", r"1 file was added \(f\.txt\)"),
        ("removed", r"1 file was removed \(b\.txt\)"),
        ("edited", r"2 files were edited \(b\.txt, c\.txt\)"),
        ("reordered", r"1 file was renamed \(z\.txt\)"),
    ],
)
def test_what_differs_in_a_folder_is_told(books: Path, kind: str, told: str) -> None:
    before = fingerprint_of(find_source(books))
    change(books, kind)
    after = fingerprint_of(find_source(books))
    assert before.fingerprint != after.fingerprint
    assert difference(before.files, after.files) == told.replace("\\", "")


def test_a_changed_folder_is_refused_with_what_differs(books: Path, settings: dict[str, Any]) -> None:
    stopped(books, settings)
    change(books, "edited")
    change(books, "added")
    with pytest.raises(ValueError, match=r"on: 1 file was added \(f\.txt\), 2 files were edited \(b\.txt, c\.txt\)\."):
        groundling.resume("first", on_event=silent)


def test_many_files_are_told_in_short() -> None:
    files = [{"name": f"{i:04}.txt", "sha256": str(i)} for i in range(500)]
    assert difference([], files) == "500 files were added (0000.txt, 0001.txt, 0002.txt, ...)"
    assert difference(files, files[::-1]) == ""


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ([b"ab\ncd"], [b"ab", b"\n", b"", b"cx"], (4, 2)),
        ([b"ab\n", b"cd"], [b"ab\ncd", b"e"], (5, 2)),
        ([], [b"a"], (0, 1)),
        ([b"same\n"], [b"sa", b"me\n"], (5, 2)),
    ],
)
def test_texts_part_where_they_part(old: list[bytes], new: list[bytes], place: tuple[int, int]) -> None:
    assert first_difference_at(old, new) == place


def test_a_run_whose_time_is_over_is_evaluated_on_the_changed_text(text_file: Path, settings: dict[str, Any]) -> None:
    """It was stopped when its last evaluation was made: there is no other due before the end."""
    groundling.train(text_file, name="first", on_event=lambda event: None, **settings)
    (Path("runs/first") / "result.json").unlink()  # killed before it had written that
    text_file.write_bytes(text_file.read_bytes()[:-100])
    run = groundling.resume("first", accept_changed_text=True, on_event=lambda event: None)
    assert run.finished
    last = [line for line in run.metrics() if line["event"] == "evaluation"][-1]
    assert run.result is not None
    assert run.result["best_validation_loss"] == last["validation_loss"]


def test_the_printed_command_continues_with_the_text_that_was_given(text_file: Path, settings: dict[str, Any]) -> None:
    old, new = text_file.read_text("utf-8"), text_file.with_name("new.txt")
    stopped(text_file, settings)
    new.write_text(old[:20000], encoding="utf-8", newline="")
    told = re.escape(f"`groundling resume first --corpus {new} --accept-changed-text`")
    with pytest.raises(ValueError, match=told):
        groundling.resume("first", corpus=new, on_event=silent)
    run = groundling.resume("first", corpus=new, accept_changed_text=True, on_event=silent)
    assert run.finished and run.record.corpus.characters == len(run_text := new.read_text("utf-8")) < len(old)
    # Of a finished run, the record changes, so that it can be evaluated.
    run = groundling.resume("first", corpus=text_file, accept_changed_text=True, on_event=silent)
    assert run.step == 4 and run.record.corpus.characters == len(old) > len(run_text)
    assert groundling.load("first").evaluate()["tokens"] > 0


def test_a_text_that_cannot_be_accepted_is_not_recorded(text_file: Path, settings: dict[str, Any]) -> None:
    stopped(text_file, settings)
    before = Path("runs/first/config.json").read_bytes()
    Path("snow.txt").write_text(1000 * "\u2603", encoding="utf-8")
    Path("other.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(ValueError, match="first cannot continue with the changed text"):
        groundling.resume("first", corpus="snow.txt", accept_changed_text=True, on_event=silent)
    changed = r"The text at other\.jsonl is not the one that the run first was trained on: it has changed \(JSON Lines "
    with pytest.raises(ValueError, match=changed + r"without the field 'text'\)\. Restore the old text, or start"):
        groundling.resume("first", corpus="other.jsonl", accept_changed_text=True, on_event=silent)
    assert Path("runs/first/config.json").read_bytes() == before
