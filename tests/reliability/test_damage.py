"""Damage to any file of a checkpoint or of prepared tokens: found before anything is loaded, every time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from bench import STEPS, train

import groundling
from groundling import storage
from groundling.config import CorpusSettings
from groundling.data import files
from groundling.data.corpus import prepare, reopen
from groundling.data.sources import Source, find_source
from groundling.training.checkpoints import AllDamaged, Checkpoints
from groundling.training.events import Notice, Started
from tiny import TINY

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "nothing left": lambda content: b"",
    "one byte left": lambda content: content[:1],
    "half left": lambda content: content[: len(content) // 2],
    "one byte lost": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "a zero tail": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
}


def flipped(content: bytes, random: Random) -> bytes:
    place = random.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]


def damages(folder: Path, flips: int) -> list[tuple[Path, bytes | None]]:
    """The files of a folder, and what each may have become; None: it is gone."""
    random, files = Random(0), sorted(path for path in folder.iterdir() if path.is_file())
    found: list[tuple[Path, bytes | None]] = [(file, None) for file in files]
    found += [(file, damage(file.read_bytes())) for file in files for damage in DAMAGES.values()]
    chosen = [random.choice(files) for _ in range(flips)]
    return found + [(file, flipped(file.read_bytes(), random)) for file in chosen]


class Damaged:
    """For a while, `file` holds `content`."""

    def __init__(self, file: Path, content: bytes | None) -> None:
        self.file, self.content, self.before = file, content, file.read_bytes()

    def __enter__(self) -> None:
        storage._hashed.clear()  # as in a new process
        self.file.unlink()
        if self.content is not None:
            self.file.write_bytes(self.content)

    def __exit__(self, *_: object) -> None:
        self.file.write_bytes(self.before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", "")
        folder = tmp_path_factory.mktemp("trained")
        train(folder)
    return folder


def test_any_damage_to_a_checkpoint_is_found_and_the_one_before_is_used(trained: Path) -> None:
    checkpoints = Checkpoints(trained / "run" / "checkpoints")
    newest, before = checkpoints.path(STEPS), checkpoints.path(STEPS - 1)
    tried = damages(newest, flips=200)
    tried += [(file, (before / file.name).read_bytes()) for file in newest.iterdir()]  # swapped between steps
    for file, content in tried:
        if content == file.read_bytes():
            continue  # config.json and tokenizer.json are the same at both steps; and some tails are zeros anyway
        with Damaged(file, content):
            said: list[str] = []
            assert checkpoints.newest(said.append) == before, (file.name, content)
            assert len(said) == 1 and newest.name in said[0] and "Using the checkpoint before it." in said[0]


def test_checkpoints_under_each_others_names_are_found(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run" / "checkpoints", folder := tmp_path / "checkpoints")
    checkpoints, said = Checkpoints(folder), list[str]()
    checkpoints.path(STEPS).rename(folder / "other")
    checkpoints.path(STEPS - 1).rename(checkpoints.path(STEPS))
    (folder / "other").rename(checkpoints.path(STEPS - 1))
    with pytest.raises(AllDamaged, match=r"2 checkpoint\(s\), but none can be read: .* does not match its name"):
        checkpoints.newest(said.append)


def test_a_damaged_pointer_points_nowhere(trained: Path) -> None:
    checkpoints = Checkpoints(trained / "run" / "checkpoints")
    for file, content in damages(checkpoints.folder, flips=50):
        if content != file.read_bytes():
            with Damaged(file, content):
                assert checkpoints.pointed(file.stem) is None


def tokens_of(corpus: Any) -> list[int]:
    whole = replace(corpus.train, stop=corpus.validation.stop)
    return [int(token) for token in whole.read(0, len(whole))]


@pytest.fixture
def source(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("GROUNDLING_CACHE", str(trained / "cache"))
    return find_source(trained / "text.txt")


def test_any_damage_to_prepared_tokens_is_found_and_they_are_prepared_anew(source: Source) -> None:
    corpus = prepare(source, CorpusSettings())
    expected, home = tokens_of(corpus), corpus.train.path.parent
    for file, content in damages(home, flips=60):
        if content != file.read_bytes():
            said: list[str] = []
            storage._hashed.clear()
            file.unlink() if content is None else file.write_bytes(content)
            again = prepare(source, CorpusSettings(), notice=said.append)
            assert tokens_of(again) == expected and again.tokenizer == corpus.tokenizer
            assert len(said) == 1 and said[0].endswith("Tokenizing the text again."), (file, said)


def test_damaged_tokens_of_a_text_that_is_gone_are_refused(source: Source) -> None:
    corpus = prepare(source, CorpusSettings())
    given = (corpus.fingerprint, corpus.name, corpus.tokenizer, CorpusSettings())
    assert reopen(*given) is not None
    for file, content in damages(corpus.train.path.parent, flips=10):
        if content != file.read_bytes():
            with Damaged(file, content):
                said: list[str] = []
                assert reopen(*given, said.append) is None
                assert len(said) == 1 and str(file.parent) in said[0]


def test_a_damaged_tokenizer_in_the_cache_is_made_anew(source: Source) -> None:
    corpus = prepare(source, CorpusSettings())
    (file,) = (storage.cache_folder() / "tokenizers").glob("*.json")
    random = Random(1)
    for _ in range(50):
        file.write_bytes(flipped(file.read_bytes(), random))
        assert prepare(source, CorpusSettings()).tokenizer == corpus.tokenizer


def test_a_text_that_is_edited_while_it_is_prepared_is_noticed(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("text.txt", "the first version of it " * 100)
    opened, when, real = list[Path](), list[int](), files.open_unpacked

    def edit(file: Path, name: str) -> Any:
        opened.append(file)
        if len(opened) in when:
            path.write_text("the other version of it " * 100)
        return real(file, name)

    monkeypatch.setattr(files, "open_unpacked", edit)
    for when[:] in [3], [4]:  # its format is found, it is hashed, its tokenizer made, then it is tokenized
        path.write_text("the first version of it " * 100)
        opened.clear()
        with pytest.raises(ValueError, match="was changed while it was read"):
            prepare(find_source(path), CorpusSettings())
    monkeypatch.setattr(files, "open_unpacked", real)
    assert not list((storage.cache_folder() / "tokens").glob("[!.]*/tokens.bin"))
    path.write_text("the first version of it " * 100)
    assert prepare(find_source(path), CorpusSettings()).tokenizer.decode(np.arange(3))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"{"])
def test_a_run_whose_record_or_tokenizer_is_damaged_is_mended(
    name: str, content: bytes | None, once_trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "once"
    shutil.copytree(once_trained, folder)
    before = (folder / name).read_bytes()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    events: list[Any] = []
    groundling.resume("once", steps=11, on_event=events.append)
    assert any(f"{name} was missing or damaged. Restored it" in str(event) for event in events)
    if name == "tokenizer.json":
        assert (folder / name).read_bytes() == before


def test_a_run_with_the_line_ends_of_git_is_used(once_trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "once"
    shutil.copytree(once_trained, folder)
    expected = groundling.load("once").generate("The ", max_new_tokens=9, seed=1)
    for file in folder.rglob("*.json*"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert groundling.load("once").generate("The ", max_new_tokens=9, seed=1) == expected
    events: list[Any] = []
    assert groundling.resume("once", steps=11, on_event=events.append).finished
    assert next(event.step for event in events if isinstance(event, Started)) == 10
    assert not [event for event in events if isinstance(event, Notice)]


def test_a_run_whose_checkpoints_cannot_be_read_is_not_begun_again(once_trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "once"
    shutil.copytree(once_trained, folder)
    weights = {file: file.read_bytes() for file in folder.rglob("model.safetensors")}
    for file in [*folder.rglob("manifest.json"), folder / "checkpoints" / "best.json"]:
        file.write_bytes(b"{")
    for use in (
        lambda: groundling.load("once").generate("The "),
        lambda: groundling.resume("once", steps=11, on_event=lambda event: None),
    ):
        with pytest.raises(AllDamaged, match=r"run once has .*none can be read: .*manifest\.json is damaged: .*delete"):
            use()
    assert weights and all(file.read_bytes() == content for file, content in weights.items())


def test_a_record_that_was_changed_is_refused(once_trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "once"
    shutil.copytree(once_trained, folder)
    record = (folder / "config.json").read_text()
    (folder / "config.json").write_text(record.replace('"learning_rate": 0.003', '"learning_rate": 0.007'))
    with pytest.raises(ValueError, match=r"config.json and the checkpoint step-000010 differ in --learning-rate"):
        groundling.resume("once", steps=11, on_event=lambda event: None)


@pytest.fixture(scope="module")
def once_trained(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    folder = tmp_path_factory.mktemp("once")
    (folder / "prose.txt").write_text(prose, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        settings = TINY | {"steps": 10, "sample_tokens": 0}
        run = groundling.train(folder / "prose.txt", name="once", out=folder, on_event=lambda event: None, **settings)
    return run.folder
