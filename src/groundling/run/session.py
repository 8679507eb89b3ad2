"""One training session of a run: from its newest checkpoint to its end or to a stop."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, ParamSpec

from groundling import storage
from groundling.analysis.diagnosis import verdict
from groundling.analysis.history import History
from groundling.config import Config
from groundling.data.corpus import Corpus
from groundling.data.progress import silent
from groundling.escape import command
from groundling.evaluation.causality import sees_the_future
from groundling.inference.example_prompt import example_prompt
from groundling.machine import peak_memory
from groundling.model.adapter import AdapterSpec
from groundling.model.initial import InitialModel
from groundling.model.weights_file import check_fits, check_memory
from groundling.parallel import processes
from groundling.parallel.plan import check_processes, new_mesh
from groundling.planning.planner import compare_with_plan
from groundling.reporting.trackers import Tracked, Tracker, tracking
from groundling.run.metrics_log import rewind
from groundling.run.parents import model_at, n_new_rows
from groundling.run.run import Run
from groundling.run.start import check_record, note_bits
from groundling.run.store import load
from groundling.tasks import new_task
from groundling.training.events import (
    VALIDATION_LOSS,
    Event,
    Finished,
    OutOfMemory,
    Paused,
    Started,
    Subscriber,
    reporters,
)
from groundling.training.signals import said, stop_request
from groundling.training.task import TrainingData
from groundling.training.trainer import Trainer

P = ParamSpec("P")


def initial_model(config: Config, text: TrainingData, copy: Path | None = None) -> InitialModel:
    """The initial weights. With `--init-from`, those in the folder `copy`, or else the other run's."""
    checkpoint = None
    if config.training.init_from:
        # Runs of older versions have no copy.
        checkpoint = copy if copy and copy.is_dir() else load(config.training.init_from).checkpoint
    return InitialModel(config.model, text.tokenizer.vocab_size, config.training.seed, checkpoint)


def adapter_spec(run: Run, vocab_size: int) -> AdapterSpec | None:
    """The adapter that a run trains, or None if it trains all weights."""
    method = run.config.method
    if method is None or not method.adapter or not run.config.training.init_from:
        return None
    alpha = method.adapter_alpha or 2.0 * method.adapter
    return AdapterSpec(method.adapter, alpha, method.adapter_kind, n_new_rows(run.folder / "initial", vocab_size))


def in_processes(verb: Callable[P, Run]) -> Callable[P, Run]:
    """Let a verb train in as many processes as torchrun has started. The others follow rank 0, which runs it."""

    @functools.wraps(verb)
    def wrapped(*arguments: P.args, **settings: P.kwargs) -> Run:
        with processes.joined():
            return verb(*arguments, **settings) if processes.is_main() else _follow()

    return wrapped


def _follow() -> Run:
    """Take part in the training of the run that rank 0 has prepared, and report nothing."""
    folder = Path(processes.from_main(""))
    if not folder.is_dir():
        raise ValueError(
            f"This machine does not see {folder.absolute()}, the folder of the run. Put runs ($GROUNDLING_RUNS or "
            "--out), texts and the cache ($GROUNDLING_CACHE) on a disk that all machines see under the same path."
        )
    run = Run(folder)
    trainer = _trainer(run, run.text.open(), silent)
    trainer.subscribers.append(lambda event: _remember(run, event))
    trainer.compile()
    with stop_request() as stop:
        ended = trainer.run(stop, processes.from_main(0.0))
    if ended:
        sees_the_future(trainer.learner.model)
    run.stopped_by = None if ended else processes.largest(stop.signal or 0)
    return run


def train_run(run: Run, text: TrainingData, tell: Subscriber, track: Sequence[Tracker] | None, began: float) -> Run:
    """Train a run, whose folder is locked, from its newest checkpoint.

    `tell` receives every event, `track` names the trackers (None: those of the run's record), and `began` is the
    `time.perf_counter()` at which the command started.
    """
    notice = reporters(tell)[0]
    check_processes(run.config, processes.size())
    processes.from_main(str(run.folder))  # from here on, the other ranks do the same: see _follow
    trainer = _trainer(run, text, notice)
    trainer.subscribers += [lambda event: _remember(run, event), tell]
    with ExitStack() as stack:
        trainer.subscribers.append(stack.enter_context(_tracking(run, track, trainer.state.step, notice)))
        trainer.compile()
        if run.machine.compile == "auto":
            run.update(machine=run.record.machine.model_copy(update={"compile": trainer.machine.compile}))
        note_bits(run, run.checkpoints.path(trainer.state.step), trainer.machine, trainer.mesh, notice)
        trainer.emit(_started(run, text, trainer))
        if sum(line["event"] == "checked" for line in run.metrics()) <= len(run.record.former_texts):
            baselines = trainer.task.baselines()
            if baselines is not None:
                trainer.emit(baselines)
        if trainer.state.step == 0 and (sentence := trainer.task.first_look(trainer.learner.model)):
            notice(sentence)
        stop = stack.enter_context(stop_request())  # from here on, there is something to save
        if processes.size() > 1:
            trainer.stopped = said(trainer.stopped)
        if trainer.run(stop, processes.from_main(time.perf_counter() - began)):
            _finish(run, text, trainer, notice)
            return Run(run.folder)
        run.stopped_by = processes.largest(stop.signal or 0)
        trainer.emit(Paused(trainer.state.step, run.reference))
        return run


def _trainer(run: Run, text: TrainingData, notice: Callable[[str], None]) -> Trainer:
    """A trainer at the newest undamaged checkpoint. The run's history is cut off there.

    Raises ValueError if the checkpoint does not fit the record, or if the model is too large for this machine, and
    OSError if there is no room for checkpoints.
    """
    config, vocab_size = run.config, text.tokenizer.vocab_size
    said: list[str] = []  # reported after the history is cut off
    newest = processes.on_main(lambda: _newest(run, vocab_size, said.append))
    initial = initial_model(config, text, run.folder / "initial")
    others = {role: model_at(run.folder / role) for role in run.record.others}
    task = new_task(text, config, initial, others)
    adapter = adapter_spec(run, vocab_size)
    mesh = new_mesh(config, vocab_size, run.machine.device)
    trainer = Trainer(initial, task, config.training, run.machine, run.checkpoints, adapter, mesh)
    size = trainer.learner.checkpoint_size
    processes.on_main(lambda: run.checkpoints.check_room(size, config.training))
    if newest:
        trainer.resume(newest, text_since=run.record.corpus.since, extended_at=run.record.extended_at)
    state = trainer.state
    if mesh.is_main:
        rewind(run.folder, state.step, state.evaluated_step, state.guard.rollbacks, said.append)
    for sentence in said:
        notice(sentence)
    return trainer


def _newest(run: Run, vocab_size: int, notice: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint, which fits the run's record. What interrupted writes left is removed."""
    for folder in (run.folder, run.checkpoints.folder):
        storage.remove_temporary(folder)
    check_memory(run.config.model, vocab_size)
    newest = run.checkpoints.newest(notice)
    if newest:
        check_record(run, newest)
        check_fits(newest, run.config.model, vocab_size)
    return newest


def _remember(run: Run, event: Event) -> None:
    """Record smaller micro-batches, so that the run resumes with them."""
    if isinstance(event, OutOfMemory):
        training = dataclasses.replace(run.config.training, batch_size=event.batch_size, accumulate=event.accumulate)
        run.update(
            settings=dataclasses.replace(run.config, training=training),
            machine=run.record.machine.model_copy(update={"evaluation_batch": event.evaluation_batch}),
        )


def _tracking(
    run: Run, track: Sequence[Tracker] | None, step: int, notice: Callable[[str], None]
) -> AbstractContextManager[Subscriber]:
    """The trackers of this session. If `track` is None, those of the run's record."""
    names: list[Any] = list(run.record.track if track is None else track)
    if names != run.record.track:
        run.update(track=names)
    return tracking(names, Tracked(run.name, run.folder, run.record.to_dict(), step), notice, asked=track is not None)


def _started(run: Run, text: TrainingData, trainer: Trainer) -> Started:
    steps = run.config.training.steps
    training, validation = text.token_counts
    corpus = run.record.corpus.model_dump(exclude={"contents", "parts"}, exclude_unset=True) | {
        "training_tokens": training,
        "validation_tokens": validation,
    }
    if mixed := trainer.task.mixed(steps):
        facts = [part.model_dump() for part in run.record.corpus.parts]
        corpus["parts"] = [known | now for known, now in zip(facts, mixed, strict=True)]
    return Started(
        run.reference,
        trainer.state.step,
        steps,
        run.config.training.minutes,
        corpus,
        trainer.learner.model.parameter_table(),
        trainer.machine.describe(),
        trainer.task.epochs(steps),
        run.config.task,
    )


def _finish(run: Run, text: TrainingData, trainer: Trainer, notice: Callable[[str], None]) -> None:
    state, model = trainer.state, trainer.learner.model
    assert state.best_score is not None
    metrics, sees_future = run.metrics(), sees_the_future(model)
    summary = verdict(History.read(metrics, run.config, sees_future))
    end = Finished(
        run.reference, state.step, state.elapsed, state.best_step, state.best_score, summary, peak_memory(),
        compare_with_plan(metrics, state), sees_future,
        prompt=_example_prompt(text, run.config.model.block_size // 2),
        metric=next(line for line in reversed(metrics) if line["event"] == "evaluation").get("metric", VALIDATION_LOSS),
    )  # fmt: skip
    storage.write_json(run.folder / "result.json", end.to_dict())
    _drawn(run, "plot", run.plot, notice)
    # Indexing a long text would take too long now.
    page = _drawn(run, "report", lambda: run.report(originality=False), notice)
    trainer.emit(dataclasses.replace(end, report=page))


def _example_prompt(text: TrainingData, room: int) -> str:
    return example_prompt(text.train, text.tokenizer, room) if isinstance(text, Corpus) else ""


def _drawn(run: Run, name: str, draw: Callable[[], Path], notice: Callable[[str], None]) -> str:
    """The path of the file that `draw` makes, or "" and a notice if it fails: all that was trained is saved."""
    try:
        return os.path.relpath(draw())
    except Exception as error:
        reason = str(error).partition(". ")[0].rstrip(".") or type(error).__name__
        notice(f"The {name} could not be made: {reason}. To make it: `{command(name, run.reference)}`.")
        return ""
