"""Plans post-training: steps from epochs or from the clock, warm-up, and when to evaluate."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Set
from typing import Any

from groundling.config import Config
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.tasks import new_task
from groundling.training.task import Task, TrainingData

_WARMUP = 0.05  # of all steps
_EVALUATIONS = 10
_STEPS = 200  # of a task that makes its own prompts
_SHARE = 0.8  # of the minutes for steps, the rest for evaluations and checkpoints


def plan_tuning(
    config: Config, given: Set[str], data: TrainingData, others: Mapping[str, InitialModel], machine: Machine,
    used: float,
) -> Config:  # fmt: skip
    """`config` with the settings that the user did not give: steps, warm-up and evaluations. `used` seconds of the
    minutes are over."""
    t = config.training
    if t.minutes:
        left = max(60 * t.minutes - used, 1.0)
        steps = max(1, int(_SHARE * left / _step_seconds(config, data, others, machine)))
    elif "steps" in given:
        steps = t.steps
    else:
        steps = _steps_of(config, data)
    every = max(1, math.ceil(steps / _EVALUATIONS))
    wanted: dict[str, Any] = {
        "warmup_steps": min(max(1, round(_WARMUP * steps)), steps - 1), "eval_every": every, "checkpoint_every": every,
    }  # fmt: skip
    changed: dict[str, Any] = {name: value for name, value in wanted.items() if name not in given}
    return dataclasses.replace(config, training=dataclasses.replace(t, steps=steps, **changed))


def _steps_of(config: Config, data: TrainingData) -> int:
    """Steps for the wanted epochs."""
    n = data.n_train
    if not n:
        return _STEPS
    at_once = config.training.batch_size * config.training.accumulate
    if config.task == "grpo":  # a batch is counted in replies, and an epoch in prompts
        at_once = max(1, at_once // config.method.num_generations)
    return max(1, math.ceil(config.method.epochs * n / at_once))


def _step_seconds(config: Config, data: TrainingData, others: Mapping[str, InitialModel], machine: Machine) -> float:
    """Seconds of a step, measured on a model of the same size with random weights, whose replies are as long as they
    can be."""
    initial = InitialModel(config.model, data.tokenizer.vocab_size, config.training.seed)
    task, model = new_task(data, config, initial, others), initial.build().to(machine.device)
    seconds = []
    with machine.own_randomness():
        task.place(machine)
        for step in range(2):
            start = time.perf_counter()
            _try_step(task, step, model, config.training.accumulate, machine)
            seconds.append(time.perf_counter() - start)
    return min(seconds) / config.machine.processes


def _try_step(task: Task, step: int, model: GPT, accumulate: int, machine: Machine) -> None:
    batch = task.batch(step, model)
    model.train()
    for part in batch.split(accumulate):
        with machine.autocast():
            loss = task.loss(model, part.to(machine.device)).value
        if loss.requires_grad:
            loss.backward()
        float(loss.detach())  # waits for a GPU
    model.zero_grad(set_to_none=True)
