"""The folder of a run, before training touches it: made or found again, locked, its record written."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from groundling import __version__, storage
from groundling.config import GROUPS, Config, flag
from groundling.data.corpus import Corpus, prepare
from groundling.data.fingerprint import Contents, contents_of
from groundling.data.progress import silent
from groundling.data.reopen import TextChanged, refuse_change
from groundling.data.sources import Source, find_source
from groundling.data.tokenizers.base import UnknownText
from groundling.escape import visible
from groundling.machine import Machine, bits, versions
from groundling.run.folder import as_name, is_name
from groundling.run.record import FORMAT, NewerVersion
from groundling.run.run import Run
from groundling.training.checkpoints import TrainState, read_state

LOCK = ".lock"
"""The file in a run's folder that the process which trains it holds."""


def claim(
    config: Config, text: Corpus, source: Source, contents: Contents, name: str | None, folder: Path,
    notice: Callable[[str], None], stack: ExitStack,
) -> Run:  # fmt: skip
    """A new run's empty folder, or the unfinished run of the same command; locked until `stack` closes.

    Raises ValueError if the run of that `name` cannot be gone on with, or if the text of the unfinished one
    was changed.
    """
    if name is not None and not is_name(name):
        raise ValueError(f"--name {name!r} cannot name a folder: use letters, digits, '.', '_' and '-'.")
    base = name or as_name(text.name)
    for number in itertools.count(1):
        run = Run(folder / (base if number == 1 else f"{base}-{number}"))
        storage.make_folder(run.folder)
        with ExitStack() as trial:
            try:
                lock(run.folder, trial)
                mend(run, notice)
                if run.begun:
                    _check_continuable(run, config, text, source, contents)
                    notice(
                        f"The run {run.reference} began with the same command and was not finished: it is continued."
                    )
                stack.push(trial.pop_all())
                return run
            except TextChanged:
                raise
            except ValueError as obstacle:
                if name is not None:
                    raise ValueError(f"{obstacle} Choose another --name.") from None
    raise AssertionError("unreachable")


def _check_continuable(run: Run, config: Config, text: Corpus, source: Source, contents: Contents) -> None:
    """Raise ValueError if `train` with this configuration cannot go on with an existing run."""
    old, new = run.record.get("requested", run.record["settings"]), config.to_dict()
    if old != new:
        differing = [flag(k) for g in GROUPS for k in old[g] if old[g][k] != new[g][k]] or ["--preset"]
        raise ValueError(f"The run {run.name} exists with other settings ({', '.join(differing)}).")
    if run.finished:
        raise ValueError(f"The run {run.name} exists and is finished.")
    refuse_change(run.record["corpus"], run.reference, run.config, run.tokenizer, source, contents)
    if run.tokenizer != text.tokenizer:
        raise ValueError(f"The run {run.name} exists and has another tokenizer.")


def lock(folder: Path, stack: ExitStack) -> None:
    """Hold the run until `stack` closes; the lock goes with the process, however it ends.

    Raises ValueError that names the process which holds it.
    """
    holder = folder / "holder.json"
    try:
        stack.enter_context(FileLock(folder / LOCK).acquire(timeout=0))
    except Timeout:
        raise ValueError(
            f"The run {folder.name} is being trained by another process{_told(holder)}. Wait for it, or stop it first."
        ) from None
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    storage.write_json(holder, {"pid": os.getpid(), "host": platform.node(), "since": since})
    stack.callback(storage.remove_file, holder)  # one that a killed process leaves is replaced by the next


def _told(holder: Path) -> str:
    """Who holds the run, as far as it has said so."""
    for _ in range(20):  # it may have won a moment ago
        with suppress(OSError, ValueError, KeyError, TypeError):
            value = storage.read_json(holder)
            pid, host, since = int(value["pid"]), visible(str(value["host"])), visible(str(value["since"]))
            if host != platform.node() or psutil.pid_exists(pid):
                return f": number {pid} on {host}, since {since.replace('T', ' ')}"
        time.sleep(0.05)
    return ""


def corpus_facts(text: Corpus, contents: Contents) -> dict[str, Any]:
    """The text, as a run's record has it: see run/record.py."""
    return {
        "name": text.name,
        "fingerprint": text.fingerprint,
        "documents": text.n_documents,
        "characters": text.n_characters,
        "vocab_size": text.tokenizer.vocab_size,
        "tokenizer": text.tokenizer.fingerprint,
        "contents": list(contents.documents),
    }


def accept_changed_text(run: Run, notice: Callable[[str], None], progress: Callable[..., None]) -> Corpus:
    """The text that is at the run's address now, and is its own from here on: its record says so, and what was before.

    Raises ValueError if the run's tokenizer cannot express it.
    """
    source = find_source(run.config.corpus, run.config.text.glob)
    contents = contents_of(source, progress)
    try:
        text = prepare(source, run.config.text, tokenizer=run.tokenizer, fingerprint=contents.fingerprint,
                       notice=notice, progress=progress)  # fmt: skip
    except UnknownText as error:
        raise ValueError(f"The run {run.name} cannot go on with the changed text. {error}") from None
    was = run.record["corpus"]
    if text.fingerprint != was["fingerprint"]:
        newest = run.checkpoints.newest(lambda _: None)
        step = read_state(newest).step if newest else 0
        run.record["former_texts"] = [*run.record.get("former_texts", []), was | {"contents": []}]
        run.record["corpus"] = corpus_facts(text, contents) | {"since": step}
        storage.write_json(run.folder / "config.json", run.record)
        notice(
            f"From step {step:,} on the text is another one, as --accept-changed-text allowed: {text.n_characters:,} "
            f"characters where there were {was['characters']:,}. Validation losses before and after are of different "
            "texts."
        )
    return text


def mend(run: Run, notice: Callable[[str], None]) -> None:
    """Put a run's record and tokenizer back from its newest checkpoint, where they are gone or damaged.

    What is not sound there either is left: whoever reads it says what is wrong.
    """
    for name, is_sound in (("config.json", _has_record), ("tokenizer.json", _has_tokenizer)):
        if not run.checkpoints.steps() or is_sound(run):
            continue
        newest = run.checkpoints.newest(silent)
        if newest and is_sound(Run(run.folder, newest)):
            storage.write_file(run.folder / name, (newest / name).read_bytes())
            notice(f"{run.folder / name} was gone or damaged, and is put back as it was in {newest.name}.")


def _has_record(run: Run) -> bool:
    try:
        return bool(run.record)
    except NewerVersion:
        return True  # it is as it should be, but not for us
    except (ValueError, OSError):
        return False


def _has_tokenizer(run: Run) -> bool:
    try:
        return run.tokenizer.fingerprint == run.record["corpus"]["tokenizer"]
    except NewerVersion:
        return True
    except (ValueError, OSError):
        return False
    finally:
        run.__dict__.pop("tokenizer", None)  # read anew when it is put back


_PASSES = {"batch_size", "accumulate"}


def check_record(run: Run, checkpoint: Path) -> None:
    """Raise ValueError if a setting in the run's record is not that of its checkpoint: it would be another run."""
    old, new = Run(run.folder, checkpoint).record["settings"], run.record["settings"]
    free = {"steps", "minutes"}
    if prod(old["training"][k] for k in _PASSES) == prod(new["training"][k] for k in _PASSES):
        free |= _PASSES  # the same windows in passes of another size, which memory may have asked for
    wrong = [flag(k) for g in GROUPS for k in old[g] if old[g][k] != new[g].get(k) and k not in free]
    if wrong:
        raise ValueError(
            f"{run.folder / 'config.json'} says another {', '.join(wrong)} than the checkpoint {checkpoint.name}: it "
            f"is damaged, or was edited. Copy {checkpoint / 'config.json'} over it to go on."
        )


def write_record(
    run: Run, requested: Config, config: Config, text: Corpus, contents: Contents, machine: Machine
) -> None:
    """Write what the run is: settings as asked for and as planned, the text's fingerprint, machine, versions."""
    text.tokenizer.save(run.folder / "tokenizer.json")
    record = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "requested": requested.to_dict(),  # before anything was planned: what the same command asks for again
        "settings": config.to_dict(),
        "corpus": corpus_facts(text, contents),
        "machine": machine.describe(),
        "versions": versions() | {"groundling": __version__},
    }
    storage.write_json(run.folder / "config.json", record)


def note_bits(run: Run, checkpoint: Path, machine: Machine, notice: Callable[[str], None]) -> None:
    """Keep in the record, and with it in each checkpoint from now on, what decides the last bits of all results.

    What of it is not as it was when `checkpoint` was saved, if there is one, is said: that is once.
    """
    now = bits(machine)
    was = Run(run.folder, checkpoint).record.get("bits", now) if checkpoint.exists() else now
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
