"""One session of a run: its parts are built from its folder, trained to the end or to a stop, and all is saved."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch

from groundling import storage
from groundling.analysis.diagnosis import verdict
from groundling.analysis.history import History
from groundling.analysis.ngrams import milestones, one_gram
from groundling.checkup.leakage import WINDOW, shared
from groundling.config import Config
from groundling.data.batches import Batches, near
from groundling.data.corpus import Corpus
from groundling.evaluation.causality import sees_the_future
from groundling.machine import Machine, peak_memory
from groundling.model.gpt import GPT
from groundling.model.weights_file import check_fits, check_memory
from groundling.planning.planner import judge
from groundling.reporting.trackers import Tracked, Tracker, tracking
from groundling.run.claim import check_record, note_bits
from groundling.run.metrics_log import RunFiles, rewind
from groundling.run.room import Room
from groundling.run.run import Run
from groundling.run.store import load
from groundling.tasks.samples import Samples
from groundling.training.checkpoints import TrainState, load_training, load_weights
from groundling.training.divergence import DivergedError, restore
from groundling.training.events import (
    Checked,
    Diverged,
    Event,
    Finished,
    Notice,
    Paused,
    Started,
    Subscriber,
    reporters,
)  # fmt: skip
from groundling.training.fit import Actions, fit
from groundling.training.objective import Taught, next_token
from groundling.training.optimizer import Optimizers, new_optimizer
from groundling.training.signals import StopRequest


def new_batches(config: Config, text: Corpus) -> Batches:
    """Raises ValueError if the text is too short for them."""
    if len(text.validation) < 2:
        raise ValueError(
            f"The text has {text.n_characters} character(s), too few to keep a validation part of; use a longer one."
        )
    t = config.training
    return Batches(text.train, config.model.block_size, t.batch_size, t.accumulate, t.seed)


def train_on(
    run: Run, text: Corpus, emit: Subscriber, began: float, track: Sequence[Tracker] | None, notes: list[Event]
) -> Run:
    """Train a run, whose folder is locked, from where it stands.

    `began` is when the command was given, by `time.perf_counter()`, `notes` what is to be told first.
    """
    config, settings, machine = run.config, run.config.training, run.machine
    model, optimizer, state = _parts(run, text, reporters(notes.append)[0])
    with ExitStack() as stack:
        files, stop = RunFiles(run.folder), StopRequest()

        def show(event: Event) -> None:
            files(event)
            emit(event)

        tell_trackers = stack.enter_context(_tracking(run, track, state, lambda sentence: show(Notice(sentence))))

        def tell(event: Event) -> None:
            show(event)
            tell_trackers(event)

        for event in notes:
            tell(event)
        room = Room(run, near(new_batches(config, text), machine), model, state, tell)
        forward = room.choose_forward(next_token)
        settings, machine = room.settings, room.machine
        note_bits(run, run.checkpoints.path(state.step), machine, reporters(tell)[0])
        tell(_started(run, text, room.batches, model, machine, state))
        if sum(line["event"] == "checked" for line in run.metrics()) <= len(run.record.get("former_texts", [])):
            tell(_checked(text))

        def beginning(generation: int = 1) -> dict[str, torch.Tensor]:
            return _beginning(config, text, generation).state_dict()

        actions = Actions(
            evaluate=lambda: room.evaluate(text, stop),
            sample=Samples(model, text, settings, stop),
            save=lambda: run.checkpoints.save(model, optimizer, state, run.folder, settings.keep_checkpoints),
            restore=lambda: restore(run.checkpoints, state, model, optimizer, beginning),
            beginning=beginning,
            taught=lambda: Taught(room.teaching(_teacher(config, text, model, optimizer))),
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


def _parts(run: Run, text: Corpus, note: Callable[[str], None]) -> tuple[GPT, Optimizers, TrainState]:
    """Model, optimizer and state as the newest whole checkpoint has them, or as they begin; the history, up to there.

    Raises ValueError if the record and the checkpoint are not of one run, or the model is none that can be held, and
    OSError if there is no room for checkpoints.
    """
    config = run.config
    storage.sweep(run.folder)
    storage.sweep(run.checkpoints.folder)
    check_memory(config.model, text.tokenizer.vocab_size)
    newest = run.checkpoints.newest(note)
    if newest:
        check_record(run, newest)
        check_fits(newest, config.model, text.tokenizer.vocab_size)
    model = (_untrained if newest else _beginning)(config, text).to(run.machine.device)
    optimizer = new_optimizer(model, config.training, run.machine.dtype)
    run.checkpoints.check_room(model, optimizer, config.training)
    state = load_training(newest, model, optimizer) if newest else TrainState()
    if 0 < state.best_step <= run.record["corpus"].get("since", 0):  # the best of another text
        state.best_step, state.best_loss, state.evaluations_since_best = -1, None, 0
    rewind(run.folder, state.step, state.evaluated_step, state.rollbacks, note)
    return model, optimizer, state


def _untrained(config: Config, text: Corpus, generation: int = 1) -> GPT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed + generation - 1)
        return GPT(config.model, text.tokenizer.vocab_size)  # on the CPU: the same weights on every device


def _beginning(config: Config, text: Corpus, generation: int = 1) -> GPT:
    """The model before its first step: untrained, or with the weights that it begins with."""
    model = _untrained(config, text, generation)
    if config.training.init_from:
        load_weights(load(config.training.init_from).checkpoint, model)
    return model


def _teacher(config: Config, text: Corpus, model: GPT, optimizer: Optimizers) -> GPT:
    """The model of the generation before."""
    teacher = _untrained(config, text).to(model.device).requires_grad_(False).eval()
    optimizer.teach(model, teacher)
    return teacher


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
    corpus = {key: value for key, value in run.record["corpus"].items() if key != "contents"} | {
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
