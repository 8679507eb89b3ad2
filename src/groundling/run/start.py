"""Prepare a run's folder for training: find or create it, repair it, extend its record."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

from groundling import __version__, storage
from groundling.config import PROCESSES, READING, Config, CorpusSettings, MachineSettings, flag
from groundling.data.corpus import Corpus
from groundling.data.fingerprint import TextFingerprint, fingerprint_of
from groundling.data.mixture import Mixture
from groundling.data.progress import silent
from groundling.data.sources import CorpusPath, Source
from groundling.data.tokenizers.base import UnknownText
from groundling.escape import command
from groundling.machine import Machine, bits, usable_threads, versions
from groundling.parallel.mesh import Mesh
from groundling.run.folder import as_name, checked_name
from groundling.run.lock import Obstacle, lock
from groundling.run.parents import copy_model, copy_weights, facts_of
from groundling.run.record import FORMAT, MachineFacts, NewerVersion, RunRecord
from groundling.run.run import Run
from groundling.run.store import load
from groundling.run.training_data import corpus_facts, prepare_data
from groundling.tasks.pretraining import check_length
from groundling.training.checkpoints import AllDamaged
from groundling.training.state import TrainState, read_state
from groundling.training.task import TrainingData

_MICRO_BATCH = {"batch_size", "accumulate"}


@dataclasses.dataclass(frozen=True)
class NewRun:
    """A request to train: a configuration, and the prepared text or examples. A task that makes its own examples has
    no `source`. `others` are the teacher or the reward model."""

    config: Config
    text: TrainingData
    source: Source | None
    contents: TextFingerprint
    others: Mapping[str, Run] = dataclasses.field(default_factory=dict)

    @property
    def base_name(self) -> str:
        """The run's name unless the user gives one: made of the text's, or of the parent's and the method's."""
        if self.config.method is None:
            return as_name(self.text.name)
        parent = self.config.training.init_from
        return as_name(f"{load(parent).name if parent else self.config.preset}-{self.config.task}")

    def create(self, run: Run, planned: Config, machine: Machine) -> None:
        """Write the files of the run, with the settings `planned`. A folder without a record is not a run, so that
        comes last."""
        self.text.tokenizer.save(run.folder / "tokenizer.json")
        if planned.mix is not None:  # a longer run does not change what was read
            planned = dataclasses.replace(planned, mix=dataclasses.replace(planned.mix, steps=planned.training.steps))
        origin = dict[str, Any]()
        if init_from := planned.training.init_from:  # copies, since that run may delete its checkpoint
            parent = load(init_from)
            origin["lineage"] = [*parent.record.lineage, facts_of(parent)]
            rows = self.text.tokenizer.vocab_size
            copy_weights(parent, run.folder / "initial", planned.model, rows, planned.task == "reward")
        for role, other in self.others.items():
            origin.setdefault("others", {})[role] = facts_of(other)
            copy_model(other, run.folder / role)
        record = RunRecord(
            format=FORMAT,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            requested=self.config,
            settings=planned,
            corpus=corpus_facts(self.text, self.contents),
            machine=MachineFacts(**machine.describe()),
            versions=versions() | {"groundling": __version__},
            **origin,
        )
        run.create(record)


def find_or_create(new: NewRun, name: str | None, folder: Path, notice: Callable[[str], None], stack: ExitStack) -> Run:
    """The unfinished run of the same command, or the empty folder of a new run. Locked until `stack` closes.

    Without a name, an unfinished run of the same text and settings is found by whatever name, since the text may have
    been moved.

    Raises ValueError if the run of that `name` cannot be continued, or if the text of the unfinished one has changed.
    """
    base = checked_name(name) if name is not None else new.base_name
    numbered = (folder / (base if number == 1 else f"{base}-{number}") for number in itertools.count(1))
    for path in numbered if name is not None else itertools.chain(_runs_of(new, folder), numbered):
        run = Run(path)
        storage.make_folder(run.folder)
        with ExitStack() as trial:
            try:
                lock(run.folder, trial)
                repair(run, notice)
                if run.exists:
                    _check_continuable(run, new)
                    notice(f"Resuming unfinished run {run.reference} (same command). Use --name to start a new one.")
                    if new.source is not None:
                        move_text(run, new.source, new.config.text, notice)
                stack.push(trial.pop_all())
                return run
            except (Obstacle, AllDamaged) as obstacle:
                if name is not None:
                    raise ValueError(f"{obstacle} Use another --name.") from None
    raise AssertionError("unreachable")


def _runs_of(new: NewRun, folder: Path) -> Iterator[Path]:
    """The unfinished runs of the same text and settings."""
    for path in sorted(folder.glob("*/config.json")):
        with suppress(ValueError, OSError):
            run = Run(path.parent)
            same = run.record.corpus.fingerprint == new.contents.fingerprint
            if same and not run.finished and not _differing(run.record.requested, new.config):
                yield path.parent


def _check_continuable(run: Run, new: NewRun) -> None:
    """Raise Obstacle if `groundling train` cannot continue this run."""
    try:
        was, text, tokenizer = run.record.corpus, new.text, run.tokenizer
        end = run.step if run.finished else None
    except ValueError as damage:
        raise Obstacle(str(damage)) from None
    if differing := _differing(run.record.requested, new.config):
        raise Obstacle(f"The run {run.name} exists with other settings ({', '.join(differing)}).")
    if end is not None:
        raise Obstacle(
            f"The run {run.name} exists and is finished. To train it further, use "
            f"`{command('resume', run.reference, '--steps', 2 * end)}`."
        )
    same_files = [file.sha256 for file in was.contents] == [file["sha256"] for file in new.contents.files]
    if was.contents and same_files and (was.documents, was.characters) != (text.n_documents, text.n_characters):
        raise Obstacle(
            f"The run {run.name} exists, and read the same files otherwise: {was.documents:,} document(s) and "
            f"{was.characters:,} characters instead of {text.n_documents:,} and {text.n_characters:,} (--format, "
            "--field, --document-separator)."
        )
    if new.source is not None:
        run.text.refuse_change(new.source, new.contents)
    if tokenizer != new.text.tokenizer:
        raise Obstacle(f"The run {run.name} exists with another tokenizer.")


def _differing(old: Config, wanted: Config) -> list[str]:
    """The flags in which two requests differ, with both values. Where the text is and how it is read do not count: its
    content is compared."""
    if old.preset != wanted.preset:
        return [f"--preset {old.preset} instead of {wanted.preset}"]
    if old.task != wanted.task:
        return [f"{old.task} instead of {wanted.task}"]
    a, b = _with_text(old, (), CorpusSettings()).values, _with_text(wanted, (), CorpusSettings()).values
    changed = [name for name in a if a[name] != b[name] and name not in PROCESSES]
    return [f"{flag(name)} {a[name]} instead of {b[name]}" for name in changed]


def _with_text(config: Config, corpus: str | tuple[str, ...], text: CorpusSettings) -> Config:
    """The same configuration with the text at another place, read as `text` says."""
    reading = {name: getattr(text, name) for name in READING}
    return dataclasses.replace(config, corpus=corpus, text=dataclasses.replace(config.text, **reading))


def move_text(run: Run, source: Source, text: CorpusSettings, notice: Callable[[str], None]) -> None:
    """Record where the text of a run is now, and how it is read there. Its content is the same."""
    settings, requested = (_with_text(each, source.corpus, text) for each in (run.config, run.record.requested))
    if run.config.corpus != source.corpus:
        notice(f"The text of the run {run.name} is now at {', '.join(source.addresses)}.")
    if (settings, requested) != (run.config, run.record.requested):
        run.update(settings=settings, requested=requested)


def find_text(run: Run, corpus: CorpusPath | Sequence[CorpusPath], notice: Callable[[str], None], accept: bool) -> None:
    """Record that the text of a run is now at `corpus`. Raises TextChanged if it differs, unless you `accept` it, and
    ValueError if the run cannot continue with it."""
    has_folder = any(os.path.isdir(path) for path in ([corpus] if isinstance(corpus, str | os.PathLike) else corpus))
    text = run.config.text if has_folder else dataclasses.replace(run.config.text, glob=None)
    source = run.text.find(corpus, text)
    if accept:
        _acceptable(run, source, text, fingerprint_of(source))
    else:
        run.text.refuse_change(source, fingerprint_of(source))
    move_text(run, source, text, notice)


def repair(run: Run, notice: Callable[[str], None]) -> None:
    """Restore a missing or damaged record or tokenizer from the run's newest checkpoint.

    If it is damaged there too, nothing is done, and reading it will raise an error.
    """
    for name, attribute in (("config.json", "record"), ("tokenizer.json", "tokenizer")):
        if not run.checkpoints.steps() or _is_intact(run, attribute):
            continue
        newest = run.checkpoints.newest(silent)
        if newest and _is_intact(Run(run.folder, newest), attribute):
            storage.write_file(run.folder / name, (newest / name).read_bytes())
            notice(f"{run.folder / name} was missing or damaged. Restored it from {newest.name}.")


def use_processes(run: Run, wanted: MachineSettings, given: Container[str] = PROCESSES) -> None:
    """Record how many processes train a run from now on, and how. If they are as many as before, only what was `given`
    changes."""
    was = run.config.machine
    changes = [name for name in PROCESSES if name in given or wanted.processes != was.processes]
    now = dataclasses.replace(was, **{name: getattr(wanted, name) for name in changes})
    if now == was:
        return
    machine = run.record.machine
    if now.processes != was.processes:  # they divide the cores
        machine = machine.model_copy(update={"threads": usable_threads()[0]})
    run.update(settings=dataclasses.replace(run.config, machine=now), machine=machine)


def _is_intact(run: Run, attribute: str) -> bool:
    """Whether the record or the tokenizer can be read, even if only by a newer version."""
    try:
        getattr(run, attribute)
    except NewerVersion:
        pass
    except (ValueError, OSError):
        return False
    return True


def check_record(run: Run, checkpoint: Path) -> None:
    """Raise ValueError if the settings in the run's record are not those of its checkpoint."""
    old, new = Run(run.folder, checkpoint).config.values, run.config.values
    free = {"steps", "minutes", *READING, *PROCESSES}  # of the text, the content is compared
    if new["warmup_steps"] == _warmup(old["warmup_steps"], new["steps"]):
        free.add("warmup_steps")
    if prod(old[k] for k in _MICRO_BATCH) == prod(new[k] for k in _MICRO_BATCH):
        free |= _MICRO_BATCH  # smaller micro-batches of the same windows, after running out of memory
    wrong = [flag(k) for k in old if old[k] != new.get(k) and k not in free]
    if wrong:
        raise ValueError(
            f"{run.folder / 'config.json'} and the checkpoint {checkpoint.name} differ in {', '.join(wrong)}: the file "
            f"was damaged or edited. Copy {checkpoint / 'config.json'} over it to continue."
        )


def accept_text(run: Run, notice: Callable[[str], None], progress: Callable[..., None]) -> TrainingData:
    """Accept the text that is at the run's address now. The record keeps the step from which it is used.

    Raises ValueError if the run's tokenizer cannot encode it, or if it is too short.
    """
    source = run.text.find(run.config.corpus, run.config.text, stored=True)
    contents = fingerprint_of(source, progress)
    text = _acceptable(run, source, run.config.text, contents, notice, progress)
    was = run.record.corpus
    if text.fingerprint != was.fingerprint:
        step = _newest_state(run).step
        facts = corpus_facts(text, contents).model_copy(update={"since": step})
        run.update(corpus=facts, former_texts=[*run.record.former_texts, was.model_copy(update={"contents": []})])
        notice(
            f"The training text changed at step {step:,} (--accept-changed-text): {text.n_characters:,} characters "
            f"instead of {was.characters:,}. Validation losses before and after are not comparable."
        )
    return text


def _acceptable(
    run: Run, source: Source, settings: CorpusSettings, contents: TextFingerprint,
    notice: Callable[[str], None] = silent, progress: Callable[..., None] = silent,
) -> TrainingData:  # fmt: skip
    """The tokens of a changed text. Raises ValueError if the run cannot continue with it."""
    try:
        text = prepare_data(source, run.config, settings, run.tokenizer, contents, notice, progress)
    except UnknownText as error:
        raise ValueError(f"The run {run.name} cannot continue with the changed text. {error}") from None
    if isinstance(text, Corpus | Mixture):
        check_length(text, run.config, is_new=False)
    return text


def note_bits(run: Run, checkpoint: Path, machine: Machine, mesh: Mesh, notice: Callable[[str], None]) -> None:
    """Record what decides the last bits of results (`machine.bits`). Report what changed since `checkpoint`."""
    now: dict[str, Any] = bits(machine) | ({"processes": str(mesh)} if mesh.size > 1 else {})
    was = Run(run.folder, checkpoint).record.bits if checkpoint.exists() else {}
    if was and "processes" in was | now:
        was, now = {"processes": "1"} | was, {"processes": "1"} | now
    changes = ", ".join(f"{name} {was.get(name)} → {now[name]}" for name in now if was.get(name) != now[name])
    if was and changes:
        notice(f"Not bit-exact: {changes}. The run continues, and results differ in their last digits.")
    if run.record.bits != now:
        run.update(bits=now)


def extend(run: Run, steps: int | None, minutes: float | None) -> None:
    """Give a run a new end. Raises ValueError if it is already there."""
    state, was = _newest_state(run), run.config.training
    if steps is not None:
        if state.step >= steps:
            raise ValueError(f"--steps {steps}: the run {run.name} is already at step {state.step}.")
        minutes = 0.0
    else:
        assert minutes is not None
        if state.elapsed >= 60 * minutes:
            taken = f"{state.elapsed / 60:.1f} minutes"
            raise ValueError(f"--minutes {minutes}: the run {run.name} has already trained for {taken}.")
        known = state.step > 0 and state.elapsed > 0
        steps = max(round(60 * minutes * state.step / state.elapsed) if known else was.steps, state.step + 1)
    warmup = _warmup(was.warmup_steps, steps)
    training = dataclasses.replace(was, steps=steps, minutes=float(minutes), warmup_steps=warmup)
    storage.remove_file(run.folder / "result.json")  # it is not finished any more
    run.update(settings=dataclasses.replace(run.config, training=training), extended_at=state.step)


def _newest_state(run: Run) -> TrainState:
    newest = run.checkpoints.newest(silent)
    return read_state(newest) if newest else TrainState()


def _warmup(warmup_steps: int, steps: int) -> int:
    """`warmup_steps`, or fewer if the run is shorter."""
    return min(warmup_steps, max(steps - 1, 0))
