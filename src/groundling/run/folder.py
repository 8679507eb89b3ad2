"""The folder of a run. Files are read when needed, and validated before use.

runs/<name>/
  config.json      the run's record (record.py): settings, fingerprint of the text, machine, versions
  tokenizer.json
  metrics.jsonl    what happened, one JSON object a line
  samples.jsonl    what the model generated along the way, from one prompt and seed
  initial/         a copy of the initial weights, if they are another run's (--init-from, sft, dpo, grpo, ...)
  teacher/         a copy of the teacher of `distill`
  reward/          a copy of the reward model of `grpo --reward`
  checkpoints/     see training/checkpoints.py
  result.json      the event Finished, written at the end
  positions.json   the loss by place in the context, after `eval --by-position`
  loss.png         the loss curve, drawn at the end
  report.html      the report, written at the end
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from contextlib import suppress
from functools import cached_property
from itertools import dropwhile
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.config import Config, user_path
from groundling.data.tokenizers.base import Tokenizer
from groundling.escape import command
from groundling.machine import Machine, choose, default_torch
from groundling.model.gpt import GPT
from groundling.model.weights_file import check_fits, check_memory, load_weights
from groundling.run.metrics_log import read_history, read_result
from groundling.run.record import RunRecord
from groundling.storage.safe_read import check_folder
from groundling.training.checkpoints import Checkpoints
from groundling.training.state import read_state

_MOST_BYTES = 100  # of a name, in UTF-8; file systems allow 255, and temporary files add to it
_DEVICE = re.compile(r"(?i)^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?=\.|\Z)")  # reserved file names on Windows
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


class RunFolder:
    """The files of a run, possibly from a stranger: reading them runs no code, and a damaged file raises ValueError.
    See SECURITY.md."""

    def __init__(self, folder: Path, checkpoint: Path | None = None) -> None:
        """`checkpoint` is the one to use. Default: the best one, else the newest.

        Raises ValueError if the folder contains a link to outside, or anything that is neither file nor folder.
        """
        self.folder = folder
        if checkpoint is not None:
            check_folder(checkpoint)
        if checkpoint is None or self.exists:
            copies = [folder / name for name in ("initial", "teacher", "reward")]
            for part in (folder, *copies, folder / "checkpoints", *(folder / "checkpoints").glob("step-*")):
                check_folder(part)
        self.chosen = checkpoint

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def reference(self) -> str:
        """The argument that means this run on the command line, unquoted: its name, or its path from the working
        directory."""
        if self.folder.parent == runs_folder().resolve() and not self.name.startswith("-"):
            return self.name
        path = str(self.folder)
        with suppress(ValueError):  # it is on another drive
            path = os.path.relpath(path)
        is_plain = path == os.curdir or (os.path.dirname(path) and path[0] not in "-~")
        return path if is_plain else os.path.join(os.curdir, path)  # not a name, an option or a home folder

    @cached_property
    def record(self) -> RunRecord:
        """The content of `config.json`: settings, text, lineage."""
        path = (self.chosen or self.folder) / "config.json"
        return RunRecord.read(storage.read_json(path), str(path))

    def update(self, **changes: Any) -> None:
        """Change entries of the record. Only this and `create` write config.json."""
        self.create(self.record.model_copy(update=changes))

    def create(self, record: RunRecord) -> None:
        """Write a new record."""
        storage.write_json(self.folder / "config.json", record.to_dict())
        self.record = record

    @property
    def config(self) -> Config:
        return self.record.settings

    @cached_property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints")

    @property
    def checkpoint(self) -> Path:
        """The checkpoint in use. Raises ValueError if the run has none yet, or if none can be read."""
        path = self.chosen or self.checkpoints.pointed("best") or self.checkpoints.newest(lambda _: None)
        if path is None:
            raise ValueError(
                f"The run {self.name} has no checkpoint yet. Continue it with `{command('resume', self.reference)}`."
            )
        return path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        path = (self.chosen or self.folder) / "tokenizer.json"
        tokenizer = Tokenizer.load(path)
        if tokenizer.fingerprint != self.record.corpus.tokenizer:
            raise ValueError(f"{path} is not the tokenizer that {self.name} was trained with: its hash differs.")
        return tokenizer

    @cached_property
    def machine(self) -> Machine:
        return choose(self.config.machine, self.record.machine.model_dump())

    @cached_property
    @default_torch()
    def model(self) -> GPT:
        """The model of the checkpoint in use, on its device. The hashes of its files are checked first."""
        storage.verify(self.checkpoint)
        check_fits(self.checkpoint, self.config.model, self.tokenizer.vocab_size)
        check_memory(self.config.model, self.tokenizer.vocab_size)
        model = GPT(self.config.model, self.tokenizer.vocab_size)
        load_weights(self.checkpoint, model)
        return model.to(self.machine.device).eval()

    @property
    def step(self) -> int:
        """The optimizer steps of the checkpoint in use."""
        return read_state(self.checkpoint).step

    def check_writes(self) -> None:
        """Raises ValueError if the model is no language model."""
        if self.config.task == "reward":
            raise ValueError(
                f"The run {self.name} is a reward model: it judges replies, and writes none. Use the run that it was "
                f"trained from, {self.record.lineage[-1].run}."
            )

    @property
    def result(self) -> dict[str, Any] | None:
        """The fields of the event `Finished`. None if the run is not finished."""
        return read_result(self.folder / "result.json")

    @property
    def exists(self) -> bool:
        """Whether the folder already contains a run."""
        return (self.folder / "config.json").exists()

    @property
    def finished(self) -> bool:
        return self.result is not None

    def metrics(self) -> list[dict[str, Any]]:
        """The run's history: the lines of `metrics.jsonl`."""
        return read_history(self.folder / "metrics.jsonl")

    def samples(self) -> list[dict[str, Any]]:
        """What the model generated while it trained: the lines of `samples.jsonl`."""
        return self._written("sample")

    def replies(self) -> list[dict[str, Any]]:
        """Groups of rewarded replies that it wrote while it trained: lines of `samples.jsonl` too."""
        return self._written("replies")

    def _written(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in read_history(self.folder / "samples.jsonl") if line["event"] == kind]


def runs_folder(out: str | os.PathLike[str] | None = None) -> Path:
    """`out`, or `$GROUNDLING_RUNS`, or `runs` in the working directory."""
    if out is not None:
        return user_path("--out", out)
    return user_path("GROUNDLING_RUNS", os.environ.get("GROUNDLING_RUNS") or "runs")


def as_name(text: str, otherwise: str = "run") -> str:
    """A run's name made of `text`: its letters and digits, of any script, and `-` for everything else. `otherwise` if
    nothing is left. `is_name` holds for it, and still does with a number after it."""
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    encoding = sys.getfilesystemencoding()
    text = text.encode(encoding, "ignore").decode(encoding)  # in the locale C, it may be ASCII
    words = "".join(c if _may_be_in_a_name(c) else " " for c in text)
    name = _cut("".join(dropwhile(lambda c: not _may_begin_a_name(c), re.sub(" +", "-", words))))
    return _cut(_DEVICE.sub(r"\1-run", name)) or otherwise


def _cut(name: str) -> str:
    """At most as many bytes as leave room for a number."""
    return name.encode()[: _MOST_BYTES - 4].decode(errors="ignore").rstrip("-.")


def is_name(text: str) -> bool:
    """Whether `text` is a valid run name on every operating system. It is in NFC, so no two names look the same."""
    return (
        all(map(_may_be_in_a_name, text))
        and text == unicodedata.normalize("NFC", text)
        and 0 < len(text.encode()) <= _MOST_BYTES
        and _may_begin_a_name(text[0])
        and not text.endswith(".")
        and not _DEVICE.match(text)
    )


def checked_name(name: str, option: str = "--name") -> str:
    """The name that a user gave, in NFC. Raises ValueError if it is not valid."""
    if not isinstance(name, str):
        raise TypeError(f"A name must be a str, not {type(name).__name__}.")
    name = unicodedata.normalize("NFC", name)
    if not is_name(name):
        raise ValueError(
            f"{option} {name!r} is not a valid name: use letters, digits, '.', '_' and '-', such as {as_name(name)!r}."
        )
    return name


def _may_be_in_a_name(c: str) -> bool:
    return c in "._-" or (unicodedata.category(c)[0] in "LMN" and not _INVISIBLE.match(c))


def _may_begin_a_name(c: str) -> bool:
    return c not in "-." and unicodedata.category(c)[0] != "M"
