"""train() and resume(): every part put together, from a text to a run that is saved."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch

from groundling import storage
from groundling.catalog import load
from groundling.claim import check_record, claim, extend, lock, mend, note_bits, write_record
from groundling.config import MINUTES_OR_STEPS, Config, flag
from groundling.corpus.batches import Batches, near
from groundling.corpus.leakage import WINDOW, shared
from groundling.corpus.ngrams import milestones, one_gram
from groundling.corpus.sources import find_source
from groundling.corpus.tokens import Corpus, prepare
from groundling.evaluation.causality import sees_the_future
from groundling.machine import Machine, choose, peak_memory
from groundling.model.gpt import GPT
from groundling.room import Room
from groundling.run import Run, corpus_of, runs_folder
from groundling.training.budget import DEFAULT_MINUTES, fit_to_machine, judge
from groundling.training.checkpoint import TrainState, load_training, load_weights
from groundling.training.console import Console
from groundling.training.diagnosis import verdict
from groundling.training.events import (
    Checked,
    Diverged,
    Event,
    Finished,
    Notice,
    Paused,
    Planned,
    RunFiles,
    Started,
    Subscriber,
    reporters,
    rewind,
)  # fmt: skip
from groundling.training.fit import Actions, fit
from groundling.training.history import History
from groundling.training.objective import next_token
from groundling.training.optimizer import new_optimizer
from groundling.training.rescue import DivergedError, restore
from groundling.training.samples import Sampler
from groundling.training.stopping import StopRequest
from groundling.training.trackers import Tracked, Tracker, check_trackers, tracking


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
    are not given are planned for that time: see training/budget.py.

    Args:
        corpus: a file, a folder, `-`, `shakespeare` (which stands if None) or `python-docs`.
        preset: where the settings start from; see `groundling.config.PRESETS`.
        name: of the run's folder; made from the corpus's name if None. A run of this name with the same
            settings and text that was not finished is continued, so that the same command can be repeated.
        out: the folder of runs; `GROUNDLING_RUNS`, or `runs` in the working directory, if None.
        track: trackers that are told too, each an extra to install: see training/trackers.py.
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
        text = prepare(source, config.text, notice=notice, progress=progress)
        _batches(config, text)  # refuses a text that is too short before a folder is made
        run = claim(config, text, name, runs_folder(out).resolve(), notice, stack)
        plan = None
        if not run.begun:
            planned, plan = fit_to_machine(config, given, text, machine, time.perf_counter() - began)
            write_record(run, config, planned, text, machine)
        return _train(run, text, emit, began, track, plan)


def resume(
    run: str | os.PathLike[str] | Run,
    *,
    out: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    track: Sequence[Tracker] | None = None,
    on_event: Subscriber | None = None,
    elapsed: float = 0.0,
) -> Run:
    """Continue a run from its newest checkpoint, bit for bit as if it had never stopped.

    `steps` or `minutes` (in all, those of the sessions before included) sets a new end, for a run that is finished or
    should go on for longer; the learning rate then follows the schedule of the longer run from here on. A run that
    was given minutes goes on by the clock, and is as long as they last. The trackers of before go on, or those of
    `track`.

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
        mend(run, reporters(emit)[0])
        text = corpus_of(run, *reporters(emit))
        if steps is not None or minutes is not None:  # now that nothing stands in the way
            extend(run, steps, minutes)
        return _train(run, text, emit, began, track)


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


def _batches(config: Config, text: Corpus) -> Batches:
    if len(text.validation) < 2:
        raise ValueError(
            f"The text has {text.n_characters} character(s), too few to keep a validation part of; use a longer one."
        )
    t = config.training
    return Batches(text.train, config.model.block_size, t.batch_size, t.accumulate, t.seed)


def _train(
    run: Run, text: Corpus, emit: Subscriber, began: float, track: Sequence[Tracker] | None,
    plan: Planned | None = None,
) -> Run:  # fmt: skip
    """Build the parts from the run's folder, train to the end or to a stop, and leave everything saved.

    `began` is when the command was given, by `time.perf_counter()`.
    """
    config, settings, machine = run.config, run.config.training, run.machine
    storage.sweep(run.folder)
    storage.sweep(run.checkpoints.folder)
    notes: list[Event] = []
    note, _ = reporters(notes.append)
    newest = run.checkpoints.newest(note)
    model = (_untrained if newest else _beginning)(config, text).to(machine.device)
    optimizer = new_optimizer(model, settings, machine.dtype)
    run.checkpoints.check_room(model, optimizer, settings)
    if newest:
        check_record(run, newest)
    state = load_training(newest, model, optimizer) if newest else TrainState()
    rewind(run.folder, state.step, state.evaluated_step, state.rollbacks, note)
    with ExitStack() as stack:
        files, stop = RunFiles(run.folder), StopRequest()

        def show(event: Event) -> None:
            files(event)
            emit(event)

        tell_trackers = stack.enter_context(_tracking(run, track, state, lambda sentence: show(Notice(sentence))))

        def tell(event: Event) -> None:
            show(event)
            tell_trackers(event)

        room = Room(run, near(_batches(config, text), machine), model, state, tell)

        def save() -> Path:
            return run.checkpoints.save(model, optimizer, state, run.folder, settings.keep_checkpoints)

        for event in [plan, *notes] if plan else notes:
            tell(event)
        forward = room.choose_forward(next_token)
        settings, machine = room.settings, room.machine
        note_bits(run, newest, machine, reporters(tell)[0])
        tell(_started(run, text, room.batches, model, machine, state))
        if not any(line["event"] == "checked" for line in run.metrics()):
            tell(_checked(text))
        actions = Actions(
            evaluate=lambda: room.evaluate(text, stop),
            sample=Sampler(model, text, settings, stop),
            save=save,
            restore=lambda: restore(
                run.checkpoints, state, model, optimizer, lambda: _beginning(config, text).state_dict()
            ),
            shrink=room.shrink,
            stopped=stop,
            emit=tell,
        )
        stack.enter_context(stop)  # before, there was nothing to save
        state.elapsed += time.perf_counter() - began
        try:
            finished = fit(model, forward, next_token, room.batches, optimizer, state, settings, machine, actions)
        except DivergedError as error:
            tell(Diverged(error.step, error.cause))
            raise
        if finished:
            _finish(run, model, state, tell)
        else:
            run.stopped_by = stop.signal
            tell(Paused(state.step, run.reference))
    return Run(run.folder) if run.stopped_by is None else run


def _untrained(config: Config, text: Corpus) -> GPT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return GPT(config.model, text.tokenizer.vocab_size)  # on the CPU: the same weights on every device


def _beginning(config: Config, text: Corpus) -> GPT:
    """The model before its first step: untrained, or with the weights that it begins with."""
    model = _untrained(config, text)
    if config.training.init_from:
        load_weights(load(config.training.init_from).checkpoint, model)
    return model


def _tracking(
    run: Run, track: Sequence[Tracker] | None, state: TrainState, notice: Callable[[str], None]
) -> AbstractContextManager[Subscriber]:
    """The trackers of this session. The run's record keeps them: where none are given, those of before go on."""
    names = list(run.record.get("track", []) if track is None else track)
    if names != run.record.get("track", []):
        run.record["track"] = names
        storage.write_json(run.folder / "config.json", run.record)
    about = Tracked(run.name, run.folder, run.record, state.step)
    return tracking(names, about, notice, asked=track is not None)


def _started(run: Run, text: Corpus, batches: Batches, model: GPT, machine: Machine, state: TrainState) -> Started:
    steps = run.config.training.steps
    corpus = run.record["corpus"] | {
        "training_tokens": len(text.train),
        "validation_tokens": len(text.validation),
    }
    return Started(
        run.reference,
        state.step,
        steps,
        run.config.training.minutes,
        corpus,
        model.parameter_table(),
        machine.describe(),
        batches.epochs(steps),
    )


def _checked(text: Corpus) -> Checked:
    V = text.tokenizer.vocab_size
    tokens = len(text.train) + len(text.validation)
    window = max(8, round(WINDOW * tokens / text.n_characters))  # a token may be several characters
    return Checked(
        milestones(text.train, text.validation, V), one_gram(text.train, V), shared(text.train, text.validation, window)
    )


def _finish(run: Run, model: GPT, state: TrainState, tell: Subscriber) -> None:
    assert state.best_loss is not None
    metrics, sees_future = run.metrics(), sees_the_future(model)
    summary = verdict(History.read(metrics, run.config, sees_future))
    end = Finished(
        run.reference, state.step, state.elapsed, state.best_step, state.best_loss, summary, peak_memory(),
        judge(metrics, state), sees_future,
    )  # fmt: skip
    storage.write_json(run.folder / "result.json", end.to_dict())
    run.plot()
    page = run.report(originality=False)  # to index a long text would take too long now
    tell(dataclasses.replace(end, report=os.path.relpath(page)))


def _subscriber(on_event: Subscriber | None, stack: ExitStack) -> Subscriber:
    return on_event if on_event is not None else stack.enter_context(Console())
