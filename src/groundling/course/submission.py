"""A submission to the class competition: a folder with a run's best checkpoint, a poem of it, and what it claims.

ada.submission/
  submission.json  author, poem, claims, and how to train the run again
  model.safetensors, config.json, tokenizer.json, state.json  the checkpoint: `groundling.load` opens the folder
  manifest.json    sizes and hashes

Without the optimizer's state, and without the text.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from groundling import __version__, storage
from groundling.config import (
    GROUPS,
    PRESETS,
    WITH_ESCAPES,
    Config,
    CorpusSettings,
    Limits,
    MachineSettings,
    Sampling,
    flag,
)
from groundling.config.settings import TOKENIZERS
from groundling.data.corpus import prepare
from groundling.data.fingerprint import fingerprint_of
from groundling.data.sources import Source
from groundling.data.tokens import Tokens
from groundling.escape import command
from groundling.evaluation.score import Score, score
from groundling.machine import Machine, bits, choose, default_torch, usable_threads, versions
from groundling.model.tensor_file import files_of
from groundling.model.weights_file import weights_hash
from groundling.run.folder import as_name
from groundling.run.record import RunRecord
from groundling.run.run import Run
from groundling.storage.safe_read import check_folder

ENDING = ".submission"
SUBMISSION = "submission.json"
HELD_OUT = CorpusSettings.val_fraction
"""Share of the text, its end, on which all runs of a competition are measured."""
_TOKENS = Limits(1, 5000)  # of a poem

_Text = Annotated[str, Field(max_length=4096)]
_Long = Annotated[str, Field(max_length=100_000)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Poem(_Part):
    """A sample, and all that it takes to generate it again."""

    prompt: _Long
    text: _Long
    max_new_tokens: Annotated[int, Field(ge=_TOKENS.least, le=_TOKENS.most)]
    sampling: Sampling


class Submission(_Part):
    """The content of submission.json."""

    format: Literal[1] = 1
    author: Annotated[str, Field(min_length=1, max_length=100)]
    poem: Poem
    loss: float
    """In nats per token, on the last tenth of the text, like `bits_per_byte`."""
    bits_per_byte: float
    step: Annotated[int, Field(ge=0, lt=2**63)]
    weights: _Sha256
    fingerprint: _Sha256
    """Of the text; see data/fingerprint.py."""
    command: _Long
    """Trains the run again. For people: the board reads the settings in config.json."""
    versions: dict[_Text, _Text]
    bits: dict[_Text, _Text]
    """What the last bits of the claims depend on; see `machine.bits`."""


class Entry(Run):
    """A run as the competition uses it: in float32 on this machine's device, wherever it was trained."""

    @cached_property
    def machine(self) -> Machine:
        return choose(MachineSettings(dtype="float32", compile="off", threads=usable_threads()[0]))


def read(folder: Path) -> Submission:
    """The claims of a submission, possibly a stranger's. Raises ValueError with a sentence if they are not valid."""
    check_folder(folder)
    path = folder / SUBMISSION
    if not path.is_file():
        raise ValueError(f"{folder.name} has no {SUBMISSION}.")
    value = storage.read_json(path)
    try:
        return Submission.model_validate_json(json.dumps(value))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(each)[:80] for each in problem["loc"]) or "it"
        raise ValueError(f"{SUBMISSION} is not valid: {where}: {problem['msg'][:300].lower()}.") from None


@default_torch()
def submit(
    run: Run, author: str, out: Path | None = None, prompt: str = "", max_new_tokens: int = 300, **sampling: Any
) -> Path:
    """Write the submission of a finished run, complete or not at all. Returns its folder.

    `out` is the folder to make, or an existing one to make it in (default: the working folder). Raises ValueError if
    the run cannot take part, or if its text has changed.
    """
    _TOKENS.check("--max-new-tokens", max_new_tokens)
    settings = Sampling(**sampling)
    if not 0 < len(author.strip()) <= 100:
        raise ValueError("--author must have 1 to 100 characters.")
    if not run.finished:
        raise ValueError(f"The run {run.name} is not finished. Finish it: `{command('resume', run.reference)}`.")
    check_rules(run)
    if run.chosen not in (None, Run(run.folder).checkpoint):
        raise ValueError(f"{run.chosen} is not the best checkpoint of its run. Submit the run: {run.folder}.")
    name = as_name(author.strip(), "author").lower() + ENDING
    target = Path(name) if out is None else out / name if out.is_dir() else out
    source = run.text.find(run.config.corpus, run.config.text, stored=True)
    run.text.refuse_change(source, fingerprint_of(source))
    entry = Entry(run.folder, run.checkpoint)
    text = "".join(entry.stream(prompt, settings, max_new_tokens))
    found = measured(entry, held_out(entry, source))
    submission = Submission(
        author=author.strip(),
        poem=Poem(prompt=prompt, text=text, max_new_tokens=max_new_tokens, sampling=settings),
        loss=found.loss,
        bits_per_byte=found.bits_per_byte,
        step=entry.step,
        weights=weights_hash(entry.checkpoint),
        fingerprint=run.record.corpus.fingerprint,
        command=train_command(run.config),
        versions=versions() | {"groundling": __version__},
        bits=bits(entry.machine),
    )
    with storage.new_folder(target) as folder:
        weights = files_of(entry.checkpoint / "model.safetensors")
        for file in [*weights, entry.checkpoint / "state.json", entry.folder / "tokenizer.json"]:
            storage.disk.fill(folder / file.name, partial(shutil.copyfile, file))
        storage.write_json(folder / "config.json", _without_paths(run.record).to_dict())
        storage.write_json(folder / SUBMISSION, submission.model_dump())
    return target


def _without_paths(record: RunRecord) -> RunRecord:
    """The record, with the name of the text in place of its path: a path tells the user's name."""
    configs = {"settings": record.settings, "requested": record.requested}
    return record.model_copy(
        update={name: dataclasses.replace(each, corpus=_text_name(each)) for name, each in configs.items()}
    )


def _text_name(config: Config) -> str:
    return Path(config.inputs[0]).name


def check_rules(run: Run) -> None:
    """Raise ValueError if a run cannot take part, since it could not be compared or trained again from a text alone."""
    record, config = run.record, run.config
    broken = {
        "is an imported model": record.imported is not None,
        f"was made by {config.task}, not by train": config.task != "pretraining",
        "mixes several texts": config.mix is not None,
        "continues another run": bool(config.training.init_from or record.lineage),
        "has a tokenizer that was not learned from the text": run.tokenizer.kind != config.text.tokenizer
        or config.text.tokenizer not in TOKENIZERS,
        f"was trained on a part of the last {HELD_OUT:.0%} of the text": config.text.val_fraction < HELD_OUT,
    }
    for reason, is_broken in broken.items():
        if is_broken:
            raise ValueError(
                f"The run {run.name} cannot take part: it {reason}. Train a new run on one text, from random weights."
            )


def held_out(entry: Run, source: Source) -> Tokens:
    """The last tenth of a text, as tokens of a run."""
    return prepare(source, CorpusSettings(), tokenizer=entry.tokenizer).validation


def measured(entry: Run, tokens: Tokens) -> Score:
    """All of these tokens, in windows of the run's context."""
    return score(entry.model, tokens, entry.tokenizer, entry.machine)


def train_command(config: Config) -> str:
    """The command that trains a run with these settings, on a text of the same name in the working folder."""
    preset = PRESETS[config.preset]
    words = ["train", _text_name(config), "--preset", config.preset]
    for name, group in GROUPS.items():
        settings, default = getattr(config, name), getattr(preset, name, group())
        for each in dataclasses.fields(settings):
            value = getattr(settings, each.name)
            always = each.name in ("steps", "warmup_steps")  # a preset's warm-up depends on the steps
            if each.name == "minutes" or (value == getattr(default, each.name) and not always):
                continue
            if isinstance(value, bool):
                words.append(flag(each.name) if value else flag(f"no_{each.name}"))
                continue
            text = str(value)
            if each.name in WITH_ESCAPES:
                text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
            words += [f"{flag(each.name)}={text}"] if text.startswith("-") else [flag(each.name), text]
    return command(*words)
