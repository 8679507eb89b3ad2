"""train() and resume(): from a text to a saved run."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from groundling import storage
from groundling.config import MINUTES_OR_STEPS, MIX_OR_CORPUS, Config, Limits, MachineSettings, flag, limits, read_mix
from groundling.data.characters import odd_notice
from groundling.data.corpus import prepare
from groundling.data.fingerprint import TextFingerprint, fingerprint_of
from groundling.data.mixture import Text, prepare_mixture
from groundling.data.progress import Notice, Progress
from groundling.data.sources import CorpusPath, Source, find_source
from groundling.escape import command
from groundling.machine import choose, default_torch
from groundling.parallel.plan import started_processes
from groundling.planning.planner import DEFAULT_MINUTES, plan
from groundling.reporting.console import Console
from groundling.reporting.trackers import Tracker, check_trackers
from groundling.run.folder import runs_folder
from groundling.run.lock import check_places, lock
from groundling.run.longer_context import CHANGEABLE, check_context, sentence_about
from groundling.run.metrics_log import MetricsLog
from groundling.run.run import Run
from groundling.run.session import in_processes, initial_model, train_run
from groundling.run.start import NewRun, accept_text, extend, find_or_create, find_text, repair, use_processes
from groundling.run.store import load
from groundling.tasks import new_task
from groundling.training.events import Event, Subscriber, reporters


@default_torch()
@in_processes
def train(
    corpus: CorpusPath | Sequence[CorpusPath] | None = None,
    *,
    mix: Mapping[Any, Any] | Sequence[str] | None = None,
    preset: str | None = None,
    name: str | None = None,
    out: str | os.PathLike[str] | None = None,
    track: Sequence[Tracker] | None = None,
    on_event: Subscriber | None = None,
    elapsed: float = 0.0,
    **settings: Any,
) -> Run:
    """Train a model on your text and return its run.

    With `minutes` (the default is 5), model size, batch and schedule are planned to fit. With `steps` or `preset`, you
    choose them.

    Args:
        corpus: files, folders, zip files, `-`, `shakespeare` (the default) or `python-docs`: one, or a list.
        mix: instead of `corpus`, several texts with their weights: `{"a.txt": 0.7, "b/": 0.3}`. A weight that changes
            linearly over the run is a pair: `(0.9, 0.1)`. See data/mixture.py.
        preset: named settings to start from; see `groundling.config.PRESETS`.
        name: the name of the run's folder. Default: the corpus's name. If an unfinished run has this name, and the
            same settings and text, it is resumed, so you can repeat the same command.
        out: folder for runs. Default: `$GROUNDLING_RUNS`, or `./runs`.
        track: trackers to log to; see reporting/trackers.py for their names and the packages they need.
        on_event: called with every event. Default: the console display.
        elapsed: seconds that were used before this call, such as for starting Python. They count as training time.
        settings: fields of `groundling.config`. They override the preset.

    Raises ValueError, OSError, FloatingPointError or MemoryError with a sentence for the user.
    """
    began = time.perf_counter() - elapsed
    check_trackers(track or ())
    settings = started_processes(settings)
    parent = load(settings["init_from"], out=out) if settings.get("init_from") else None
    if parent is not None:
        settings = _inherited(parent, settings, preset)
    if preset is None and not {"steps", "minutes"} & settings.keys():
        settings["minutes"] = DEFAULT_MINUTES
    config = Config.build("shakespeare", preset, **settings)
    if mix is not None:
        if corpus is not None:
            raise ValueError(MIX_OR_CORPUS)
        corpus, weights = read_mix(mix)
        config = dataclasses.replace(config, mix=weights)
    given = settings.keys() | ({"preset"} if preset else set())
    machine = choose(config.machine)
    with ExitStack() as stack:
        emit = on_event if on_event is not None else stack.enter_context(Console())
        notice, progress = reporters(emit)
        runs = runs_folder(out).resolve()
        check_places(runs, notice)
        try:
            source = find_source("shakespeare" if corpus is None else corpus, config.text)
        except ConnectionError as error:
            if corpus is not None:
                raise
            notice(f"{error} Training on python-docs instead, the documentation that comes with Python.")
            source = find_source("python-docs")
        config = dataclasses.replace(config, corpus=source.corpus)
        text, contents = _prepared(source, config, notice, progress)
        if sentence := odd_notice(text.odd, config.text_arguments, source.plain_path):
            notice(sentence)
        new_task(text, config, initial_model(config, text))  # raises if the text is too short
        new = NewRun(config, text, source, contents)
        run = find_or_create(new, name, runs, notice, stack)
        tell = logged(run, emit)
        if run.exists:
            use_processes(run, config.machine)
        else:
            planned, event = plan(config, given, text, machine, time.perf_counter() - began)
            new.create(run, planned, machine)
            for sentence in _decisions(parent, config, planned):
                reporters(tell)[0](sentence)
            if event is not None:
                tell(event)
        return train_run(run, text, tell, track, began)


@default_torch()
@in_processes
def resume(
    run: str | os.PathLike[str] | Run,
    *,
    out: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    corpus: CorpusPath | Sequence[CorpusPath] | None = None,
    accept_changed_text: bool = False,
    track: Sequence[Tracker] | None = None,
    on_event: Subscriber | None = None,
    elapsed: float = 0.0,
    **settings: Any,
) -> Run:
    """Continue a run from its newest checkpoint, bit for bit as if it had never stopped.

    Args:
        run: the run, its name or its path.
        out: folder for runs, as for `train`.
        steps: a new end, counted from the start of the run. The learning rate then follows the schedule of the longer
            run.
        minutes: a new end in minutes, instead of `steps`.
        corpus: where the text is now, if it was moved; as for `train`. Of a finished run, only the record changes.
        accept_changed_text: continue even if the text has changed. The record notes it.
        track: trackers to log to. Default: those of the run so far.
        on_event: called with every event. Default: the console display.
        elapsed: seconds that were used before this call, as for `train`.
        settings: `processes` and how they divide the work (`parallel`, ...), if that changes. As many processes as
            before divide it as before.

    Raises ValueError if there is nothing to do, or if the text has changed.
    """
    began = time.perf_counter() - elapsed
    check_trackers(track or ())
    settings = started_processes(settings)
    machine = MachineSettings(**settings)
    run = run if isinstance(run, Run) else load(run, out=out)
    if run.chosen not in (None, run.checkpoints.newest(lambda _: None)):
        raise ValueError(
            f"{run.chosen} is not the newest checkpoint, from which a run resumes: "
            f"`{command('resume', run.reference)}`. To start a new run from this one, use --init-from: "
            f"`{command('train', *run.config.inputs, '--init-from', os.path.relpath(run.chosen))}`."
        )
    run = Run(run.folder)
    if steps is not None and minutes is not None:
        raise ValueError(MINUTES_OR_STEPS)
    if steps is not None:
        Limits(1).check("--steps", steps)
    if minutes is not None:
        limits.MINUTES.check("--minutes", minutes)
    if steps is None and minutes is None and corpus is None and run.finished:
        raise ValueError(
            f"The run {run.name} is finished. To train it further, use --steps N or --minutes N, counted from its "
            "start."
        )
    with ExitStack() as stack:
        emit = on_event if on_event is not None else stack.enter_context(Console())
        check_places(run.folder, reporters(emit)[0])
        lock(run.folder, stack)
        repair(run, reporters(emit)[0])
        tell = logged(run, emit)
        notice, progress = reporters(tell)
        if corpus is not None:
            find_text(run, corpus, notice, accept_changed_text)
        is_over = steps is None and minutes is None and run.finished  # then only the record of its text changes
        if is_over and not accept_changed_text:
            return run
        text = accept_text(run, notice, progress) if accept_changed_text else run.text.open(notice, progress)
        if is_over:
            return run
        if steps is not None or minutes is not None:  # last, since the checks above may raise
            extend(run, steps, minutes)
        use_processes(run, machine, settings)
        return train_run(run, text, tell, track, began)


def _prepared(source: Source, config: Config, notice: Notice, progress: Progress) -> tuple[Text, TextFingerprint]:
    """The text of a new run, or several with weights."""
    contents, settings = fingerprint_of(source, progress), config.text
    if config.mix is None:
        fingerprint = contents.fingerprint
        return prepare(source, settings, fingerprint=fingerprint, notice=notice, progress=progress), contents
    text = prepare_mixture(source, config.mix, settings, contents, notice=notice, progress=progress)
    if not config.mix.is_normal:
        shares = ", ".join(
            f"{part.name} {float(start):.1%}" for part, (start, _) in zip(text.parts, config.mix.shares, strict=True)
        )
        notice(f"The weights of --mix do not add up to 1. Only their ratio counts: {shares}.")
    return text, contents


def logged(run: Run, emit: Subscriber) -> Subscriber:
    """`emit`, but each event is first written to the run's history."""
    log = MetricsLog(run.folder)

    def tell(event: Event) -> None:
        log(event)
        emit(event)

    return tell


def _decisions(parent: Run | None, config: Config, planned: Config) -> list[str]:
    """What a new run does that its user may not expect."""
    about = sentence_about(parent.config.model, planned.model) if parent is not None else ""
    memory = ""
    if (recompute := planned.training.recompute) != config.training.recompute:
        memory = f"Memory is short, so the backward pass computes {recompute} again (--recompute {recompute})."
    return [sentence for sentence in (about, memory) if sentence]


def _inherited(source: Run, settings: dict[str, Any], preset: str | None) -> dict[str, Any]:
    """The settings of a run that starts from another run's weights. Its model and tokenizer are fixed, except for the
    context. Defaults: its optimizer, a tenth of its learning rates, and about 8,192 tokens per step."""
    source.check_writes()
    storage.verify(source.checkpoint)
    t = source.config.training
    rates = {"learning_rate": t.learning_rate / 10, "matrix_learning_rate": t.matrix_learning_rate / 10}
    changed = {name: settings[name] for name in CHANGEABLE if name in settings}
    check_context(source.config.model, changed)
    model = dataclasses.asdict(source.config.model) | changed
    kept = {name: model[name] for name in model if name != "dropout"}
    kept["tokenizer"] = str(source.checkpoint / "tokenizer.json")
    differing = [flag(name) for name in kept if settings.get(name, kept[name]) != kept[name]]
    if differing:
        raise ValueError(
            f"You cannot set {' and '.join(differing)} with --init-from: the model comes from the run {source.name}."
        )
    wanted = rates | {"optimizer": t.optimizer, "dropout": model["dropout"]}
    if preset is None and not {"batch_size", "accumulate"} & settings.keys():
        wanted |= {"batch_size": max(1, 4096 // model["block_size"]), "accumulate": 2}
    return wanted | settings | kept | {"init_from": str(source.checkpoint)}
