"""train() and resume(): every part put together, from a text to a run that is saved."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from groundling import storage
from groundling.config import MINUTES_OR_STEPS, Config, flag
from groundling.data.corpus import prepare
from groundling.data.fingerprint import contents_of
from groundling.data.sources import find_source
from groundling.machine import choose
from groundling.planning.planner import DEFAULT_MINUTES, fit_to_machine
from groundling.reporting.console import Console
from groundling.reporting.trackers import Tracker, check_trackers
from groundling.run.claim import accept_changed_text as accept_text
from groundling.run.claim import claim, extend, lock, mend, write_record
from groundling.run.folder import runs_folder
from groundling.run.run import Run, corpus_of
from groundling.run.session import new_batches, train_on
from groundling.run.store import load
from groundling.training.events import Event, Subscriber, reporters


def train(
    corpus: str | os.PathLike[str] | None = None,
    *,
    preset: str | None = None,
    name: str | None = None,
    out: str | os.PathLike[str] | None = None,
    track: Sequence[Tracker] | None = None,
    on_event: Subscriber | None = None,
    elapsed: float = 0.0,
    **settings: Any,
) -> Run:
    """Train a model on a text and return its run.

    Where neither `minutes` nor `steps` nor a preset is given, it takes five minutes. With `minutes`, all settings that
    are not given are planned for that time: see planning/planner.py.

    Args:
        corpus: a file, a folder, `-`, `shakespeare` (which stands if None) or `python-docs`.
        preset: where the settings start from; see `groundling.config.PRESETS`.
        name: of the run's folder; made from the corpus's name if None. A run of this name with the same
            settings and text that was not finished is continued, so that the same command can be repeated.
        out: the folder of runs; `GROUNDLING_RUNS`, or `runs` in the working directory, if None.
        track: trackers that are told too, each an extra to install: see reporting/trackers.py.
        on_event: who is told what happens; shown on the console if None.
        elapsed: seconds of the time that are used up before this call, such as those it takes to start Python.
        settings: any field of the settings in `groundling.config`, laid over the preset.

    Raises ValueError, OSError, FloatingPointError or MemoryError with a sentence for the user.
    """
    began = time.perf_counter() - elapsed
    check_trackers(track or ())
    address = os.fspath(corpus) if corpus is not None else "shakespeare"
    if settings.get("init_from"):
        settings = _inherited(load(settings["init_from"], out=out), settings, preset)
    if preset is None and not {"steps", "minutes"} & settings.keys():
        settings["minutes"] = DEFAULT_MINUTES
    config = Config.build(address, preset, **settings)
    given = settings.keys() | ({"preset"} if preset else set())
    machine = choose(config.machine)
    with ExitStack() as stack:
        emit = _subscriber(on_event, stack)
        notice, progress = reporters(emit)
        try:
            source = find_source(address, config.text.glob)
        except ConnectionError as error:
            if corpus is not None:
                raise
            notice(f"{error} Training on python-docs instead, the documentation that Python ships.")
            source = find_source("python-docs")
        config = dataclasses.replace(config, corpus=source.address)
        contents = contents_of(source, progress)
        text = prepare(source, config.text, fingerprint=contents.fingerprint, notice=notice, progress=progress)
        new_batches(config, text)  # refuses a text that is too short before a folder is made
        run = claim(config, text, source, contents, name, runs_folder(out).resolve(), notice, stack)
        plan = None
        if not run.begun:
            planned, plan = fit_to_machine(config, given, text, machine, time.perf_counter() - began)
            write_record(run, config, planned, text, contents, machine)
        return train_on(run, text, emit, began, track, [plan] if plan else [])


def resume(
    run: str | os.PathLike[str] | Run,
    *,
    out: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    accept_changed_text: bool = False,
    track: Sequence[Tracker] | None = None,
    on_event: Subscriber | None = None,
    elapsed: float = 0.0,
) -> Run:
    """Continue a run from its newest checkpoint, bit for bit as if it had never stopped.

    `steps` or `minutes` (in all, those of the sessions before included) sets a new end, for a run that is finished or
    should go on for longer; the learning rate then follows the schedule of the longer run from here on. A run that
    was given minutes goes on by the clock, and is as long as they last. The trackers of before go on, or those of
    `track`. A text that has changed is refused, with what differs, unless `accept_changed_text`: then the run goes on
    with it, and its record says so.

    Raises ValueError if there is nothing to do, or if the text is not the one that the run began with.
    """
    began = time.perf_counter() - elapsed
    check_trackers(track or ())
    run = Run((run if isinstance(run, Run) else load(run, out=out)).folder)
    if steps is not None and minutes is not None:
        raise ValueError(MINUTES_OR_STEPS)
    if steps is None and minutes is None and run.finished:
        raise ValueError(
            f"The run {run.name} has come to its end; to train it further, say how many steps in all with --steps, "
            "or how many minutes in all with --minutes."
        )
    with ExitStack() as stack:
        emit = _subscriber(on_event, stack)
        lock(run.folder, stack)
        notes: list[Event] = []
        notice, progress = reporters(emit)
        mend(run, notice)
        if accept_changed_text:
            text = accept_text(run, reporters(notes.append)[0], progress)
        else:
            text = corpus_of(run, notice, progress)
        if steps is not None or minutes is not None:  # now that nothing stands in the way
            extend(run, steps, minutes)
        return train_on(run, text, emit, began, track, notes)


def _inherited(source: Run, settings: dict[str, Any], preset: str | None) -> dict[str, Any]:
    """The settings of a run that begins with another's weights, its model and tokenizer. Where nothing else is given,
    the optimizer is its own too, with a tenth of the learning rates, and a step has about 8,192 tokens."""
    storage.verify(source.checkpoint)
    t = source.config.training
    rates = {"learning_rate": t.learning_rate / 10, "matrix_learning_rate": t.matrix_learning_rate / 10}
    model = dataclasses.asdict(source.config.model)
    kept = {name: model[name] for name in model if name != "dropout"}
    kept["tokenizer"] = str(source.checkpoint / "tokenizer.json")
    differing = [flag(name) for name in kept if settings.get(name, kept[name]) != kept[name]]
    if differing:
        raise ValueError(f"{' and '.join(differing)} cannot be given with --init-from: the run {source.name} decides.")
    wanted = rates | {"optimizer": t.optimizer, "dropout": model["dropout"]}
    if preset is None and not {"batch_size", "accumulate"} & settings.keys():
        wanted |= {"batch_size": max(1, 4096 // model["block_size"]), "accumulate": 2}
    return wanted | settings | kept | {"init_from": str(source.checkpoint)}


def _subscriber(on_event: Subscriber | None, stack: ExitStack) -> Subscriber:
    return on_event if on_event is not None else stack.enter_context(Console())
