"""sft(), dpo(), reward(), grpo() and distill(): from a run to one that was trained further."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from groundling import storage
from groundling.config import PRESETS, Config
from groundling.data.fingerprint import TextFingerprint, fingerprint_of
from groundling.data.sources import CorpusPath, find_source
from groundling.data.tokenizers.base import Tokenizer
from groundling.data.tokenizers.chat import ChatTokenizer, with_chat, with_reward
from groundling.escape import command
from groundling.machine import choose, default_torch
from groundling.parallel import processes
from groundling.parallel.plan import started_processes
from groundling.planning.tuning import plan_tuning
from groundling.reporting.console import Console
from groundling.reporting.trackers import Tracker, check_trackers
from groundling.run.folder import runs_folder
from groundling.run.lock import check_places
from groundling.run.parents import model_of
from groundling.run.run import Run
from groundling.run.session import in_processes, train_run
from groundling.run.start import NewRun, find_or_create, use_processes
from groundling.run.store import load
from groundling.run.train import logged
from groundling.run.training_data import entries_of, prepare_data, task_prompts
from groundling.tasks.grpo import NoSignal
from groundling.training.events import Subscriber, reporters
from groundling.training.task import TrainingData

_NEW_STUDENT = f"For a new student, choose a preset: {', '.join(PRESETS)}."

RunOrName = str | os.PathLike[str] | Run


@dataclasses.dataclass(frozen=True)
class Options:
    """What all verbs take beside their settings; see `train`."""

    name: str | None = None
    out: str | os.PathLike[str] | None = None
    track: Sequence[Tracker] | None = None
    on_event: Subscriber | None = None
    elapsed: float = 0.0


@default_torch()
@in_processes
def sft(run: RunOrName, data: CorpusPath | Sequence[CorpusPath], **settings: Any) -> Run:
    """Fine-tune a run on conversations and return the new run.

    Args:
        run: the parent: a run, its name, or the path of a checkpoint.
        data: JSON Lines, JSON or Parquet files of conversations; data/conversations.py has their shapes.
        settings: `name`, `out`, `track`, `on_event` and `elapsed` as for `train`; fields of `TrainingSettings`, such
            as `steps`, `minutes` or `learning_rate`; and of `SftSettings`, such as `epochs` or `adapter`.

    Raises ValueError, OSError, FloatingPointError or MemoryError with a sentence for the user.
    """
    return _tune("sft", run, data, settings)


@default_torch()
def dpo(run: RunOrName, data: CorpusPath | Sequence[CorpusPath], **settings: Any) -> Run:
    """Train a run to prefer the chosen reply of each pair to the rejected one, and return the new run.

    Args and errors as for `sft`. The settings of the method are `DpoSettings`, such as `loss_type` and `beta`.
    """
    return _tune("dpo", run, data, settings)


@default_torch()
def reward(run: RunOrName, data: CorpusPath | Sequence[CorpusPath], **settings: Any) -> Run:
    """Train a reward model on pairs of a chosen and a rejected reply, and return its run.

    Args and errors as for `sft`. The settings of the method are `RewardSettings`.
    """
    return _tune("reward", run, data, settings)


@default_torch()
def grpo(run: RunOrName, data: CorpusPath | Sequence[CorpusPath] | None = None, **settings: Any) -> Run:
    """Train a run by the rewards of its own replies, and return the new run.

    Args and errors as for `sft`. Give `task`, the name of a task whose answers are checked, or `reward`, a reward
    model's run, and `data`, the prompts. The settings of the method are `GrpoSettings`.
    """
    given = settings.pop("reward", None)
    if data is not None and not given:
        raise ValueError("--prompts are for a --reward model. A --task makes its own.")
    if bool(settings.get("task")) == bool(given):
        raise ValueError("Give either a --task, or a --reward model and --prompts.")
    if given and data is None:
        raise ValueError("A --reward model needs --prompts: a file of prompts, or of conversations.")
    others = {}
    if given:
        others["reward"] = judge = _loaded(given, settings)
        if judge.config.task != "reward":
            pairs = command("reward", judge.reference, "pairs.jsonl")
            raise ValueError(f"The run {judge.name} is no reward model. Train one on pairs: `{pairs}`.")
        settings["reward"] = str(others["reward"].checkpoint)
    return _tune("grpo", run, data, settings, others)


@default_torch()
def distill(
    teacher: RunOrName, student: RunOrName, data: CorpusPath | Sequence[CorpusPath] | None = None, **settings: Any
) -> Run:
    """Train a student to predict what a teacher predicts, and return the new run.

    Args:
        teacher: a run, its name, or the path of a checkpoint.
        student: another one with the same tokenizer, or a preset for a new model of that size.
        data: what they read: conversations, or a text if the teacher has no chat template. Default: replies to the
            prompts of `task`, or else what the teacher was trained on.
        settings: as for `sft`. The settings of the method are `DistillSettings`.
    """
    wise = _loaded(teacher, settings)
    wise.check_writes()
    settings["teacher"] = str(wise.checkpoint)
    if data is None and not settings.get("task"):
        if getattr(wise.config.method, "task", ""):
            settings = {"task": wise.config.method.task, "level": wise.config.method.level} | settings
        else:
            data = [each for each in wise.config.inputs if each]  # an imported run has none
    return _tune("distill", student, data, settings, {"teacher": wise})


def _loaded(run: RunOrName, settings: Mapping[str, Any]) -> Run:
    return run if isinstance(run, Run) else load(run, out=settings.get("out"))


def _tune(
    task: str,
    run: RunOrName,
    data: CorpusPath | Sequence[CorpusPath] | None,
    settings: dict[str, Any],
    others: Mapping[str, Run] | None = None,
) -> Run:
    """Prepare and train a run of `task`. `others` are the models that it uses beside its parent."""
    names = [field.name for field in dataclasses.fields(Options)]
    options = Options(**{name: settings.pop(name) for name in names if name in settings})
    began = time.perf_counter() - options.elapsed
    check_trackers(options.track or ())
    if task != "sft" and max(settings.get("processes", 1), processes.size()) > 1:
        raise ValueError(f"{task} runs in one process. --processes and torchrun work with train, resume and sft.")
    settings = started_processes(settings)
    with ExitStack() as stack:
        emit = options.on_event if options.on_event is not None else stack.enter_context(Console())
        notice, progress = reporters(emit)
        runs = runs_folder(options.out).resolve()
        check_places(runs, notice)
        config, tokenizer = _configured(task, run, settings, others or {}, runs)
        machine = choose(config.machine)
        prompts, source = task_prompts(config, tokenizer), None
        text: TrainingData
        if prompts is not None:
            text, contents = prompts, TextFingerprint(prompts.fingerprint, ())
        else:
            if not data:
                raise ValueError(f"There are no data for {task}. Give a file or a folder of them.")
            source = find_source(data, config.text, entries=entries_of(task, tokenizer))
            config = dataclasses.replace(config, corpus=source.corpus)
            contents = fingerprint_of(source, progress)
            text = prepare_data(source, config, config.text, tokenizer, contents, notice, progress)
        new = NewRun(config, text, source, contents, others or {})
        tuned = find_or_create(new, options.name, runs, notice, stack)
        tell = logged(tuned, emit)
        if tuned.exists:
            use_processes(tuned, config.machine)
        else:
            models = {role: model_of(other) for role, other in (others or {}).items()}
            planned = plan_tuning(config, settings.keys(), text, models, machine, time.perf_counter() - began)
            new.create(tuned, planned, machine)
        try:
            return train_run(tuned, text, tell, options.track, began)
        except NoSignal:
            storage.remove_folder(tuned.folder)  # nothing was trained
            raise


def _configured(
    task: str, run: RunOrName, settings: dict[str, Any], others: Mapping[str, Run], runs: Any
) -> tuple[Config, Tokenizer]:
    """The settings of the new run, and its tokenizer: the parent's, with the markup of conversations."""
    corpus = f"task:{settings['task']}" if settings.get("task") else ""
    teacher = others.get("teacher")
    if teacher is not None and isinstance(run, str) and run in PRESETS:  # a new model
        student = Config.build("", run, task="pretraining", block_size=teacher.config.model.block_size)
        config = Config.tuning(task, corpus, student, None, **settings)
        return config, teacher.tokenizer
    try:
        parent = _loaded(run, {"out": runs})
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} {_NEW_STUDENT}" if teacher else str(error)) from None
    if task != "reward":
        parent.check_writes()
    storage.verify(parent.checkpoint)
    config = Config.tuning(task, corpus, parent.config, str(parent.checkpoint), **settings)
    tokenizer = parent.tokenizer
    if teacher is not None and teacher.tokenizer != tokenizer and teacher.tokenizer != with_chat(tokenizer):
        raise ValueError(
            f"The runs {teacher.name} and {parent.name} have different tokenizers. Distillation compares the "
            "probabilities of the same tokens."
        )
    if teacher is None or isinstance(teacher.tokenizer, ChatTokenizer):
        tokenizer = with_chat(tokenizer)
    if task == "reward":
        tokenizer = with_reward(with_chat(tokenizer))
    judge = others.get("reward")
    if judge is not None and judge.tokenizer != with_reward(with_chat(tokenizer)):
        raise ValueError(
            f"The reward model {judge.name} and the run {parent.name} have different tokenizers. Train a reward model "
            f"from {parent.name}, or from a run with its tokenizer."
        )
    return config, tokenizer
