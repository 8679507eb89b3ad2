"""The folder of a run. Files are read when needed, and validated before use.

runs/<name>/
  config.json      the run's record (record.py): settings, fingerprint of the text, machine, versions
  tokenizer.json
  metrics.jsonl    what happened, one JSON object a line
  samples.jsonl    what the model generated along the way, from one prompt and seed
  initial/         a copy of the initial weights, if they are another run's (--init-from)
  checkpoints/     see training/checkpoints.py
  result.json      the event Finished, written at the end
  loss.png         the loss curve, drawn at the end
  report.html      the report, written at the end
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.config import Config
from groundling.data.tokenizers.base import Tokenizer
from groundling.machine import Machine, choose
from groundling.model.gpt import GPT
from groundling.model.weights_file import check_fits, check_memory, load_weights
from groundling.run.metrics_log import read_history, read_result
from groundling.run.record import RunRecord
from groundling.storage.safe_read import check_folder
from groundling.training.checkpoints import Checkpoints
from groundling.training.state import read_state

_DEVICES = r"(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?"  # reserved file names on Windows


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
            for part in (folder, folder / "initial", folder / "checkpoints", *(folder / "checkpoints").glob("step-*")):
                check_folder(part)
        self.chosen = checkpoint

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def reference(self) -> str:
        """The argument that means this run on the command line: its name, or its path from the working directory."""
        return self.name if self.folder.parent == runs_folder().resolve() else os.path.relpath(self.folder)

    @cached_property
    def record(self) -> RunRecord:
        """`config.json`."""
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
        """The checkpoint in use. Raises ValueError if the run has none yet."""
        path = self.chosen or self.checkpoints.pointed("best") or self.checkpoints.newest(lambda _: None)
        if path is None:
            raise ValueError(
                f"The run {self.name} has no checkpoint yet. Continue it with `groundling resume {self.reference}`."
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
        return [line for line in read_history(self.folder / "samples.jsonl") if line["event"] == "sample"]


def runs_folder(out: str | os.PathLike[str] | None = None) -> Path:
    """`out`, or `$GROUNDLING_RUNS`, or `runs` in the working directory."""
    return Path(out or os.environ.get("GROUNDLING_RUNS") or "runs")


def as_name(text: str, otherwise: str = "run") -> str:
    """`text` with everything replaced that a run's name cannot have, or `otherwise` if nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or otherwise


def is_name(text: str) -> bool:
    """Whether `text` is a valid run name on every operating system."""
    fits = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", text) is not None and not text.endswith(".")
    return fits and not re.fullmatch(_DEVICES, text)
