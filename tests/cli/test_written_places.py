"""Every command that writes checks the place first, and names the option that chooses another."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

import groundling
from conftest import Run as Cli
from groundling import storage
from groundling.run.run import Run
from tiny import TINY


@pytest.fixture(scope="module")
def run(prose: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("places")
    (folder / "t.txt").write_text(prose[:5000], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        settings = TINY | {"steps": 2, "warmup_steps": 0, "n_layer": 1, "out": folder / "runs"}
        return groundling.train(folder / "t.txt", name="p", on_event=lambda _: None, **settings)


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which this user may not write."""
    folder = tmp_path / "guarded"
    folder.mkdir()

    class Guarded(storage.Disk):
        def make_folder(self, path: Path) -> None:
            if path.absolute().is_relative_to(folder):
                raise PermissionError(errno.EACCES, "Permission denied")
            super().make_folder(path)

    monkeypatch.setattr(storage, "disk", Guarded())
    return folder


def refuse_work(*arguments: Any, **options: Any) -> None:
    pytest.fail("the work began")


@pytest.mark.parametrize(
    ("work", "words", "option"),
    [
        ("groundling.run.run.run_page", ["report", "RUN", "--to", "guarded/x.html"], "--to"),
        ("groundling.run.run.plot_curves", ["plot", "RUN", "--to", "guarded/x.png"], "--to"),
        ("groundling.reporting.plot.plot_curves", ["plot", "RUN", "RUN", "--to", "guarded/x.png"], "--to"),
        ("groundling.run.run.score", ["eval", "RUN", "--html", "guarded/x.html"], "--html"),
        ("groundling.checkup.inspect.examine", ["inspect", "TEXT", "--html", "guarded/x.html"], "--html"),
        ("groundling.interchange.export._model", ["export", "RUN", "--to", "onnx", "--out", "guarded/x"], "--out"),
        ("groundling.run.eject.eject._write", ["eject", "RUN", "--out", "guarded/x"], "--out"),
        ("groundling.run.share.share.shared_page", ["share", "RUN", "--to", "guarded/x.html"], "--to"),
        ("groundling.data.tokenizers.train.train_tokenizer", ["tokenizer", "train", "TEXT", "--out", "guarded/t"],
         "--out"),
        ("groundling.environments.find_environment", ["tasks", "sums", "--write", "guarded/x.jsonl"], "--write"),
        ("groundling.cli.tokenizers._find", ["tokenizer", "export", "RUN", "--out", "guarded/t.json"], "--out"),
    ],
)  # fmt: skip
def test_a_place_is_checked_before_the_work(
    work: str, words: list[str], option: str, run: Run, guarded: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, refuse_work)
    given = {"RUN": run.folder, "TEXT": run.folder.parent.parent / "t.txt"}
    made = cli(*(given.get(word, word) for word in words))
    assert made.status == 1 and list(guarded.iterdir()) == []
    assert made.err.endswith(
        f"cannot be written: you have no permission to write in {guarded}. Choose another place with {option}.\n"
    )
