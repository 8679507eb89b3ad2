"""What the studio's pages share: the folder of runs, and the processes that train them."""

from __future__ import annotations

import itertools
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.config import Config
from groundling.data.sources import find_source
from groundling.run import store
from groundling.run.folder import as_name, checked_name
from groundling.run.lock import LOCK
from groundling.web.guard import MAX_UPLOAD
from groundling.web.studio.live import Live
from groundling.web.studio.processes import OUTPUT, Processes

NAMED = ("shakespeare", "python-docs")
"""Corpora that need no file."""


class Studio:
    """The runs of a folder."""

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self.processes = Processes()
        self.closing = threading.Event()
        """Set when the server stops, so that threads of its pages stop too."""
        self._lives: dict[Path, Live] = {}

    def runs(self) -> list[dict[str, Any]]:
        """The rows of `groundling runs`, newest first, plus runs that are just starting.

        A run that is training has the status `training`.
        """
        rows = store.runs(self.out)
        known = {row["name"] for row in rows}
        for folder in self.processes.all_started():
            if folder.name not in known:
                rows.append(store.summary(folder) | {"status": "new"})
        for row in rows:
            if self.processes.training(self.out / row["name"]) is not None:
                row["status"] = "training"
                with suppress(ValueError):  # damaged: its page says so
                    self._bring_up_to_date(row)
        return rows[::-1]

    def _bring_up_to_date(self, row: dict[str, Any]) -> None:
        """Add what has been logged since the last checkpoint."""
        live = self.live(row["name"])
        live.refresh()
        if live.last is not None:
            row["step"] = live.last["step"]
        if live.facts is not None and live.facts.best is not None:
            row["best_validation_loss"] = live.facts.best["validation_loss"]

    def writers(self) -> list[str]:
        """The runs that have a checkpoint and so can generate text, newest first. Reward models cannot."""
        return [
            row["name"]
            for row in store.runs(self.out)[::-1]
            if row["status"] in ("finished", "unfinished", "imported") and row["task"] != "reward"
        ]

    def folder(self, name: str) -> Path:
        """The folder of a run. Raises ValueError if this folder of runs has no run of that name."""
        folder = self.out / name
        if folder.parent == self.out and folder.name == name:
            starting = folder in self.processes.all_started() or self.processes.failure(folder) is not None
            if starting or (folder / "config.json").is_file():
                return folder
        raise ValueError(f"There is no run {name!r} in {self.out}.")

    def live(self, name: str) -> Live:
        """The run as its files show it. All pages of a run share one."""
        folder = self.folder(name)
        if folder not in self._lives:
            self._lives[folder] = Live(folder)
        return self._lives[folder]

    def begin(self, corpus: str, *, minutes: float, preset: str | None, tokenizer: str, name: str) -> str:
        """Start a run and return its name. Raises ValueError or OSError, saying what is wrong."""
        address = corpus.strip()
        if address not in NAMED:
            if not address or address == "-":
                raise ValueError("Choose a text: upload a file, or enter the path of a file or folder.")
            address = find_source(address).addresses[0]
        if not minutes > 0:  # NaN fails too
            raise ValueError("Enter the training time in minutes, 0.2 or more.")
        Config.build(address, preset, minutes=minutes, tokenizer=tokenizer)
        stem = Path(address).name.removesuffix(".gz").rsplit(".", 1)[0]
        name = checked_name(name.strip(), "Run name") if name.strip() else self._free_name(stem)
        if not self._is_free(name):
            raise ValueError(f"Run {name!r} already exists. Choose another name.")
        command = ["train", address, "--minutes", f"{minutes:g}", "--tokenizer", tokenizer, "--name", name]
        if preset is not None:
            command += ["--preset", preset]
        self.processes.start(self.out / name, [*command, "--out", str(self.out), "--json"])
        return name

    def resume(self, name: str, minutes: float | None = None) -> None:
        """Resume a run. `minutes` is the new total for a finished one. Raises ValueError if it is already training."""
        folder = self.folder(name)
        if self.processes.training(folder) is not None:
            raise ValueError(f"Run {name} is already training.")
        more = [] if minutes is None else ["--minutes", f"{minutes:g}"]
        self.processes.start(folder, ["resume", name, *more, "--out", str(self.out), "--json"])

    def _is_free(self, name: str) -> bool:
        """Whether no run has that name. Frees the name of a run that ended before it began: removes its output and
        lock, and nothing else."""
        folder = self.out / name
        if self.processes.ended(folder) and not (folder / "config.json").exists():
            for leftover in (OUTPUT, LOCK):
                (folder / leftover).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        return not folder.exists()

    def _free_name(self, wished: str) -> str:
        return next(filter(self._is_free, _numbered(as_name(wished))))

    def place_for_upload(self) -> Path:
        """A temporary path for an upload, in `texts` beside the runs. They need their texts to resume."""
        texts = self.out / "texts"
        texts.mkdir(parents=True, exist_ok=True)
        return texts / f".arriving-{secrets.token_hex(8)}"

    def keep_upload(self, name: str, arrived: Path) -> Path:
        """Rename an uploaded text, and return its path.

        `name` comes from the browser: its folders are dropped, and unsafe characters replaced. Never overwrites another
        text. Raises ValueError if the text is larger than 100 MB.
        """
        try:
            if arrived.stat().st_size > MAX_UPLOAD:
                raise ValueError(f"The text is larger than {MAX_UPLOAD // 2**20} MB. Enter its path instead.")
            stem, _, suffix = re.split(r"[/\\]", name)[-1].partition(".")
            ending = as_name(suffix[-10:], "")
            paths = (arrived.with_name(each) for each in _numbered(as_name(stem, "text"), ending and f".{ending}"))
            path = next(p for p in paths if not p.exists() or storage.sha256(p) == storage.sha256(arrived))
            return path if path.exists() else arrived.rename(path)
        finally:
            arrived.unlink(missing_ok=True)


def _numbered(stem: str, suffix: str = "") -> Iterator[str]:
    """`a.txt`, `a-2.txt`, `a-3.txt`, ..."""
    yield stem + suffix
    yield from (f"{stem}-{number}{suffix}" for number in itertools.count(2))
