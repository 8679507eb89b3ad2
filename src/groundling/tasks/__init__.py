"""The tasks that can be trained. Each brings its batches, loss, evaluation and samples to the one training loop.

A run's record names its task, and `TASKS` makes it. docs/ARCHITECTURE.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from groundling.config import Config
from groundling.model.initial import InitialModel
from groundling.tasks.distill import Distill
from groundling.tasks.dpo import Dpo
from groundling.tasks.grpo import Grpo
from groundling.tasks.pretraining import Pretraining
from groundling.tasks.reward import Reward
from groundling.tasks.self_distillation import SelfDistillation
from groundling.tasks.sft import Sft
from groundling.training.task import Task, TrainingData


def _pretraining(text: Any, config: Config, initial: InitialModel, others: Mapping[str, InitialModel]) -> Task:
    if config.training.generations > 1:
        return SelfDistillation(text, config, initial)
    return Pretraining(text, config, initial)


NewTask = Callable[[Any, Config, InitialModel, Mapping[str, InitialModel]], Task]
TASKS: dict[str, NewTask] = {
    "pretraining": _pretraining, "sft": Sft, "dpo": Dpo, "reward": Reward, "grpo": Grpo, "distill": Distill,
}  # fmt: skip


def new_task(
    text: TrainingData, config: Config, initial: InitialModel, others: Mapping[str, InitialModel] | None = None
) -> Task:
    """The task of a run. `others` are the models that it uses: a `teacher`, or a `reward` model.

    Raises ValueError if the text is too short for it.
    """
    if config.task not in TASKS:
        raise ValueError(f"Unknown task {config.task!r}. Known tasks: {', '.join(TASKS)}.")
    return TASKS[config.task](text, config, initial, others or {})
