"""The tasks that can be trained. Each brings its batches, loss, evaluation and samples to the one training loop.

A run's record names its task, and `TASKS` makes it. docs/ARCHITECTURE.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Callable

from groundling.config import Config
from groundling.data.corpus import Corpus
from groundling.model.initial import InitialModel
from groundling.tasks.pretraining import Pretraining
from groundling.tasks.self_distillation import SelfDistillation
from groundling.training.task import Task


def _pretraining(corpus: Corpus, config: Config, initial: InitialModel) -> Task:
    if config.training.generations > 1:
        return SelfDistillation(corpus, config, initial)
    return Pretraining(corpus, config, initial)


TASKS: dict[str, Callable[[Corpus, Config, InitialModel], Task]] = {"pretraining": _pretraining}


def new_task(corpus: Corpus, config: Config, initial: InitialModel) -> Task:
    """The task of a run. Raises ValueError if the text is too short for it."""
    if config.task not in TASKS:
        raise ValueError(f"Unknown task {config.task!r}. Known tasks: {', '.join(TASKS)}.")
    return TASKS[config.task](corpus, config, initial)
