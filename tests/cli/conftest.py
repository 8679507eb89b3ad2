"""Commands in this process, and a run for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

import groundling
from groundling.__main__ import main
from tiny import TINY


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command, given its words."""

    def cli(*words: object) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Outcome(int(exit.value.code or 0), out, err)

    return cli


@pytest.fixture(scope="module")
def trained(prose: str, tmp_path_factory: pytest.TempPathFactory) -> groundling.Run:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "prose.txt").write_text(prose, encoding="utf-8", newline="")
    short = TINY | {"steps": 4, "eval_every": 2, "checkpoint_every": 2, "warmup_steps": 0}
    return groundling.train(folder / "prose.txt", name="first", out=folder, on_event=lambda event: None, **short)


@pytest.fixture
def first(trained: groundling.Run, monkeypatch: pytest.MonkeyPatch) -> groundling.Run:
    """A run of four steps, which commands find by the name `first`. It is the same one for all tests of a module."""
    monkeypatch.setenv("GROUNDLING_RUNS", str(trained.folder.parent))
    return trained
