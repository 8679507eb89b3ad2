"""What the studio's pages share: the folder of runs, the processes that train them, and what is asked of both."""

from __future__ import annotations

import itertools
import re
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.config import Config
from groundling.data.sources import find_source
from groundling.run import store
from groundling.run.folder import as_name, is_name
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
        """Set when the server ends: threads of its pages are to end too."""
        self._lives: dict[Path, Live] = {}

    def runs(self) -> list[dict[str, Any]]:
        """As `groundling runs` has them, the newest first, and with the status `training`, where a run is; those that
        have just been started among them."""
        rows = store.runs(self.out)
        known = {row["name"] for row in rows}
        for folder in self.processes.all_started():
            if folder.name not in known:
                rows.append(dict.fromkeys(rows[0] if rows else (), None) | {"name": folder.name, "status": "new"})
        for row in rows:
            folder = self.out / row["name"]
            if self.processes.training(folder) is not None:
                row["status"] = "training"
                with suppress(ValueError):  # damaged: its page says so
                    self._bring_up_to_date(row)
        return rows[::-1]

    def _bring_up_to_date(self, row: dict[str, Any]) -> None:
        """Put into a summary what has been logged since the last checkpoint."""
        live = self.live(row["name"])
        live.refresh()
        if live.last is not None:
            row["step"] = live.last["step"]
        if live.facts is not None and live.facts.best is not None:
            row["best_validation_loss"] = live.facts.best["validation_loss"]

    def writers(self) -> list[str]:
        """The runs that have a checkpoint, and can write, the newest first."""
        return [
            row["name"] for row in store.runs(self.out)[::-1] if row["status"] in ("finished", "unfinished", "imported")
        ]

    def folder(self, name: str) -> Path:
        """The folder of a run that is in this folder of runs. Raises ValueError if there is none of that name."""
        folder = self.out / name
        if folder.parent == self.out and folder.name == name:
            starting = folder in self.processes.all_started() or self.processes.failure(folder) is not None
            if starting or (folder / "config.json").is_file():
                return folder
        raise ValueError(f"There is no run {name!r} in {self.out}.")

    def live(self, name: str) -> Live:
        """What is known of a run; one for all pages that watch it."""
        folder = self.folder(name)
        if folder not in self._lives:
            self._lives[folder] = Live(folder)
        return self._lives[folder]

    def begin(self, corpus: str, *, minutes: float, preset: str | None, tokenizer: str, name: str) -> str:
        """Start a run on a text, and return its name. Raises ValueError or OSError with what is wrong, if anything."""
        address = corpus.strip()
        if address not in NAMED:
            if not address or address == "-":
                raise ValueError("Choose a text: a file to upload, or the path of a file or folder on this machine.")
            address = find_source(address).address
        if not minutes > 0:  # NaN fails too
            raise ValueError("Say how many minutes it is to take, 0.2 or more.")
        Config.build(address, preset, minutes=minutes, tokenizer=tokenizer)
        name = name.strip() or self._free_name(Path(address).name.removesuffix(".gz").rsplit(".", 1)[0])
        if not is_name(name) or name.startswith("-"):
            raise ValueError(f"{name!r} cannot name a run: use letters, digits, '.', '_' and, within, '-'.")
        folder = self.out / name
        self._forget_unbegun(folder)
        if folder.exists():
            raise ValueError(f"There is a run {name!r} already: choose another name.")
        verb = ["train", address, "--minutes", f"{minutes:g}", "--tokenizer", tokenizer, "--name", name]
        if preset is not None:
            verb += ["--preset", preset]
        self.processes.start(folder, [*verb, "--out", str(self.out), "--json"])
        return name

    def resume(self, name: str, minutes: float | None = None) -> None:
        """Let a run go on; a finished one until `minutes` in all. Raises ValueError if it is being trained."""
        folder = self.folder(name)
        if self.processes.training(folder) is not None:
            raise ValueError(f"The run {name} is being trained already.")
        more = [] if minutes is None else ["--minutes", f"{minutes:g}"]
        self.processes.start(folder, ["resume", name, *more, "--out", str(self.out), "--json"])

    def _forget_unbegun(self, folder: Path) -> None:
        """Remove what a run left that ended before it began, to free its name: its output, and nothing else."""
        if self.processes.ended(folder) and not (folder / "config.json").exists():
            for leftover in (OUTPUT, LOCK):
                (folder / leftover).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()

    def place_for_upload(self) -> Path:
        """Where an uploaded text may arrive, beside the runs, which will need it to go on."""
        texts = self.out / "texts"
        texts.mkdir(parents=True, exist_ok=True)
        return texts / f".arriving-{secrets.token_hex(8)}"

    def keep_upload(self, name: str, arrived: Path) -> Path:
        """Give a text that arrived its name, and return where it is then.

        Of `name`, which a browser sent, letters, digits and a few signs are taken, and no folders. A text that has
        that name already is not touched. Raises ValueError if the text is larger than 100 MB.
        """
        try:
            if arrived.stat().st_size > MAX_UPLOAD:
                raise ValueError(f"The text is larger than {MAX_UPLOAD // 2**20} MB: give its path instead.")
            plain = as_name(re.split(r"[/\\]", name)[-1], "text")
            stem, dot, suffix = plain.partition(".")
            for number in itertools.count(1):
                path = arrived.parent / f"{stem[:60] or 'text'}{'' if number == 1 else f'-{number}'}{dot}{suffix[-10:]}"
                if not path.exists():
                    return arrived.rename(path)
                if storage.sha256(path) == storage.sha256(arrived):
                    return path  # the same text again
            raise AssertionError("unreachable")
        finally:
            arrived.unlink(missing_ok=True)

    def _free_name(self, wished: str) -> str:
        base = as_name(wished)
        for number in itertools.count(1):
            folder = self.out / (base if number == 1 else f"{base}-{number}")
            self._forget_unbegun(folder)
            if not folder.exists():
                return folder.name
        raise AssertionError("unreachable")
