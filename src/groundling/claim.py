"""The folder of a run, before training touches it: made or found again, locked, its record written."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from math import prod
from pathlib import Path

from filelock import FileLock, Timeout

from groundling import __version__, storage
from groundling.config import GROUPS, Config, flag
from groundling.corpus.fitting import silent
from groundling.corpus.tokens import Corpus
from groundling.machine import Machine, bits, versions
from groundling.run import Run, is_name
from groundling.training.checkpoint import TrainState, read_state


def claim(
    config: Config, text: Corpus, name: str | None, folder: Path, notice: Callable[[str], None], stack: ExitStack,
) -> Run:  # fmt: skip
    """A new run's empty folder, or the unfinished run of the same command; locked until `stack` closes."""
    if name is not None and not is_name(name):
        raise ValueError(f"--name {name!r} cannot name a folder: use letters, digits, '.', '_' and '-'.")
    base = name or re.sub(r"[^A-Za-z0-9._-]+", "-", text.name).strip("-.") or "run"
    for number in itertools.count(1):
        run = Run(folder / (base if number == 1 else f"{base}-{number}"))
        storage.make_folder(run.folder)
        with ExitStack() as trial:
            try:
                lock(run.folder, trial)
                mend(run, notice)
                if run.begun:
                    _check_continuable(run, config, text)
                    notice(
                        f"The run {run.reference} began with the same command and was not finished: it is continued."
                    )
                stack.push(trial.pop_all())
                return run
            except ValueError as obstacle:
                if name is not None:
                    raise ValueError(f"{obstacle} Choose another --name.") from None
    raise AssertionError("unreachable")


def _check_continuable(run: Run, config: Config, text: Corpus) -> None:
    """Raise ValueError if `train` with this configuration cannot go on with an existing run."""
    if run.record["corpus"]["fingerprint"] != text.fingerprint:
        raise ValueError(f"The run {run.name} exists and has another text.")
    old, new = run.record.get("requested", run.record["settings"]), config.to_dict()
    if old != new:
        differing = [flag(k) for g in GROUPS for k in old[g] if old[g][k] != new[g][k]] or ["--preset"]
        raise ValueError(f"The run {run.name} exists with other settings ({', '.join(differing)}).")
    if run.finished or run.tokenizer != text.tokenizer:
        state = "is finished" if run.finished else "has another tokenizer"
        raise ValueError(f"The run {run.name} exists and {state}.")


def lock(folder: Path, stack: ExitStack) -> None:
    """Hold the run until `stack` closes; the lock goes with the process, however it ends."""
    try:
        stack.enter_context(FileLock(folder / ".lock").acquire(timeout=0))
    except Timeout:
        raise ValueError(f"The run {folder.name} is being trained by another process.") from None


def mend(run: Run, notice: Callable[[str], None]) -> None:
    """Put a run's record and tokenizer back from its newest checkpoint, where they are gone or damaged."""
    for name, is_sound in (("config.json", _has_record), ("tokenizer.json", _has_tokenizer)):
        if run.checkpoints.steps() and not is_sound(run) and (newest := run.checkpoints.newest(silent)):
            storage.write_file(run.folder / name, (newest / name).read_bytes())
            notice(f"{run.folder / name} was gone or damaged, and is put back as it was in {newest.name}.")


def _has_record(run: Run) -> bool:
    try:
        return bool(run.record)
    except (ValueError, OSError):
        return False


def _has_tokenizer(run: Run) -> bool:
    try:
        return run.tokenizer.fingerprint == run.record["corpus"]["tokenizer"]
    except (ValueError, OSError):
        return False
    finally:
        run.__dict__.pop("tokenizer", None)  # read anew when it is put back


_PASSES = {"batch_size", "accumulate"}


def check_record(run: Run, checkpoint: Path) -> None:
    """Raise ValueError if a setting in the run's record is not that of its checkpoint: it would be another run."""
    old, new = storage.read_json(checkpoint / "config.json")["settings"], run.record["settings"]
    free = {"steps", "minutes"}
    if prod(old["training"][k] for k in _PASSES) == prod(new["training"].get(k, 0) for k in _PASSES):
        free |= _PASSES  # the same windows in passes of another size, which memory may have asked for
    wrong = [flag(k) for g in GROUPS for k in old[g] if old[g][k] != new[g].get(k) and k not in free]
    if wrong:
        raise ValueError(
            f"{run.folder / 'config.json'} says another {', '.join(wrong)} than the checkpoint {checkpoint.name}: it "
            f"is damaged, or was edited. Copy {checkpoint / 'config.json'} over it to go on."
        )


def write_record(run: Run, requested: Config, config: Config, text: Corpus, machine: Machine) -> None:
    """Write what the run is: settings as asked for and as planned, the text's fingerprint, machine, versions."""
    text.tokenizer.save(run.folder / "tokenizer.json")
    record = {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "requested": requested.to_dict(),  # before anything was planned: what the same command asks for again
        "settings": config.to_dict(),
        "corpus": {
            "name": text.name,
            "fingerprint": text.fingerprint,
            "documents": text.n_documents,
            "characters": text.n_characters,
            "vocab_size": text.tokenizer.vocab_size,
            "tokenizer": text.tokenizer.fingerprint,
        },
        "machine": machine.describe(),
        "versions": versions() | {"groundling": __version__},
    }
    storage.write_json(run.folder / "config.json", record)


def note_bits(run: Run, checkpoint: Path | None, machine: Machine, notice: Callable[[str], None]) -> None:
    """Keep in the record, and with it in each checkpoint from now on, what decides the last bits of all results.

    What of it is not as it was when `checkpoint` was saved is said: that is once.
    """
    now = bits(machine)
    was = storage.read_json(checkpoint / "config.json").get("bits", now) if checkpoint else now
    changes = ", ".join(f"{name} {was.get(name)} → {now[name]}" for name in now if was.get(name) != now[name])
    if changes:
        notice(f"not bit-exact: {changes}. The run goes on, with other last digits than without this change.")
    if run.record.get("bits") != now:
        run.record["bits"] = now
        storage.write_json(run.folder / "config.json", run.record)


def extend(run: Run, steps: int | None, minutes: float | None) -> None:
    """Give a run a new end, in its record. Raises ValueError if it has come as far already."""
    newest = run.checkpoints.newest(lambda _: None)
    state = read_state(newest) if newest else TrainState()
    if steps is not None:
        if state.step >= steps:
            raise ValueError(f"--steps {steps}: the run {run.name} has done {state.step} steps already.")
        training = dataclasses.replace(run.config.training, steps=steps, minutes=0.0)
    else:
        assert minutes is not None
        if state.elapsed >= 60 * minutes:
            raise ValueError(f"--minutes {minutes}: the run {run.name} has taken {state.elapsed / 60:.1f} already.")
        guess = round(60 * minutes * state.step / state.elapsed) if state.step else run.config.training.steps
        training = dataclasses.replace(run.config.training, steps=max(guess, state.step + 1), minutes=float(minutes))
    run.record["settings"] = dataclasses.replace(run.config, training=training).to_dict()
    storage.remove_file(run.folder / "result.json")  # it is not finished any more
    storage.write_json(run.folder / "config.json", run.record)
    del run.config
