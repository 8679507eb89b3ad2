"""Minutes -> size, batch, steps: what to train in the time that there is, and what to expect of it.

Where a figure below was measured, and where it is a guess from what was, is said beside it; docs/LOG.md has the
experiments. A plan is an estimate. The clock, not the plan, ends a run: see training/clock.py.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F

from groundling.analysis.ngrams import TRAINING_TOKENS, milestones
from groundling.config import Config, ModelSettings
from groundling.data.corpus import Corpus
from groundling.machine import Machine, Speed, has_compiler, measure_speed
from groundling.model.describe import flops_per_token, matrix_parameters
from groundling.model.gpt import GPT
from groundling.tasks.self_distillation import end_of
from groundling.training.events import Planned
from groundling.training.state import TrainState

DEFAULT_MINUTES = 5.0
_SHAPE = ("n_layer", "n_head", "n_embd")
# Without dropout: PyTorch imports its compiler for our masks' operator, which takes a second.
_REFERENCE = ModelSettings(
    block_size=256, n_layer=2, n_head=3, n_embd=192, norm="rmsnorm", position="rope", mlp="swiglu"
)
_REFERENCE_VOCABULARY, _REFERENCE_BATCH = 96, 16
_COMPILED, _WORTH_COMPILING = 0.75, 200.0  # a compiled step's share of a plain one's time; from so many seconds on
_EVALUATION = 0.04  # the share of the time that an evaluation may take; if that is not enough, it reads fewer tokens
_FEWEST_EVALUATED = 8192
_OUTSIDE = 8.0  # seconds of a run that are no steps: imports, reading the text, the last evaluation, the picture


@dataclass(frozen=True)
class SizeChoice:
    """What is best from a training cost of `flops` floating-point operations on."""

    flops: float
    n_layer: int
    n_head: int
    n_embd: int
    batch_size: int
    matrix_learning_rate: float


# The first two were measured to be best on a text of a million tokens, and the third to be as good as they are at 3e14
# and better than the fourth at 1.5e15. From which cost on those after it pay is an extrapolation.
_CHOICES = (
    SizeChoice(0, 6, 2, 128, 8, 0.02),
    SizeChoice(1.5e13, 6, 2, 128, 16, 0.02),
    SizeChoice(2e14, 6, 3, 192, 16, 0.02),
    SizeChoice(2.5e15, 6, 4, 256, 16, 0.015),
    SizeChoice(1e16, 6, 6, 384, 16, 0.015),
)
_PARAMETERS_PER_TOKEN = 5.0  # of training text, at most: beyond it nothing was tried
# Training cost without the output head's, and the loss that it bought as a share of what counting n-grams reaches on as
# much of the text: on seven texts up to 2e13, on Tiny Shakespeare from there on.
_COUNTED = 4  # the order of the n-grams: longer ones live on what a text repeats word for word
_SHARES = ((5e12, 0.92), (1e13, 0.865), (1.8e13, 0.81), (6e13, 0.78), (1e14, 0.765), (4e14, 0.755), (1.1e15, 0.75))
# Dropout and weight decay by the first generation's passes over the text, at 1.3 parameters a token; those that are
# taught take twice as many without learning it by heart. Up to 36 passes measured, on a slice of a training text: decay
# without dropout was better than any dropout up to 23, and 0.05 better than 0.15 with a larger model. From there on
# continued.
_REGULARISED = ((8, 0.0, 0.5), (28, 0.0, 0.7), (80, 0.05, 0.7), (math.inf, 0.1, 0.7))
_OFTEN = 20  # such passes in all, beyond which there are two generations: up to 17 a second one gained nothing
_TAUGHT = 1.3  # times as long takes a step with a teacher
_AVERAGED = 0.06  # of all steps; a third of that and twice as much were little worse, five times as much far worse
_SIZE = 1.3
_SPREAD = 0.12  # texts differ: the share by which the loss may be off; in eighteen runs it was by 0.11 at most


def step_seconds(model: ModelSettings, vocab_size: int, passes: int, batch_size: int, speed: Speed) -> float:
    """About how long an optimizer step of so many passes takes, from what bounds it: products, copies and overhead."""
    optimizer = 30 * matrix_parameters(model, vocab_size) / (speed.gbytes * 1e9) + 0.001 * model.n_layer
    return passes * pass_seconds(model, vocab_size, batch_size, speed) + optimizer


def pass_seconds(model: ModelSettings, vocab_size: int, batch_size: int, speed: Speed) -> float:
    """About how long a pass forward and back takes."""
    tokens = batch_size * model.block_size
    products = flops_per_token(model, vocab_size) * tokens / (speed.gflops * 1e9)
    # Bytes moved by all that is no matrix product, per element of a layer's activations.
    copies = tokens * model.n_layer * model.n_embd * 150 / (speed.gbytes * 1e9)
    return products + copies + 0.001 * model.n_layer


def benchmark_pass(machine: Machine) -> float:
    """Seconds that a pass forward and back of a small reference model takes on this machine, not compiled."""
    with machine.own_randomness():
        model = GPT(_REFERENCE, _REFERENCE_VOCABULARY).to(machine.device).train()
        tokens = torch.randint(_REFERENCE_VOCABULARY, (_REFERENCE_BATCH, _REFERENCE.block_size + 1))
        tokens = tokens.to(machine.device)
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            with machine.autocast():
                loss = F.cross_entropy(model(tokens[:, :-1]).float().flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            model.zero_grad(set_to_none=True)
            float(loss.detach())  # waits for a GPU
            seconds.append(time.perf_counter() - start)
    return min(seconds)  # the others had neighbours, or paid for setting libraries up


def memory_needed(model: ModelSettings, vocab_size: int, batch_size: int) -> int:
    """Bytes that training takes, roughly: PyTorch itself, five floats a parameter, and activations."""
    tokens = batch_size * model.block_size
    activations = tokens * (model.n_layer * model.n_embd * 100 + vocab_size * 24)  # not compiled; a third less if so
    return round(0.45e9 + 20 * matrix_parameters(model, vocab_size) + activations)


def plan(config: Config, given: Set[str], text: Corpus, machine: Machine, used: float) -> tuple[Config, Planned | None]:
    """The configuration with everything that was left open chosen for this machine, text and time.

    Args:
        given: the settings that the user named, and `preset` if one was; they stay as they are.
        used: seconds of the time that are over.
    """
    on_gpu = machine.device.type == "cuda"
    memory = torch.cuda.get_device_properties(machine.device).total_memory if on_gpu else psutil.virtual_memory().total
    if on_gpu:
        config = _with(config, given, {"log_every": 10})  # a look at each step would make the GPU wait
        if not given & {"batch_size", "accumulate"}:
            config = larger_passes(config, text.tokenizer.vocab_size, memory // 2)
    if not config.training.minutes:
        return config, None
    seconds = max(60 * config.training.minutes - used - _OUTSIDE, 1.0)
    step = _step_timer(machine, text.tokenizer.vocab_size, seconds)
    if not given & {"preset", *_SHAPE}:
        config = _shaped(config, given, text, seconds, step, memory)
    config = _scheduled(config, given, text, seconds, step(config))
    return config, _event(config, given, text, step(config), used)


def _step_timer(machine: Machine, vocab_size: int, seconds: float) -> Callable[[Config], float]:
    """A function that tells the seconds of a configuration's step on this machine, in a run of so many seconds."""
    speed = measure_speed(machine, _REFERENCE.n_embd, 4096)
    # What the arithmetic leaves out (caches, neighbours, a slow Python) is taken from one model's real passes.
    factor = benchmark_pass(machine) / pass_seconds(_REFERENCE, _REFERENCE_VOCABULARY, _REFERENCE_BATCH, speed)
    if machine.compile == "on" or (machine.compile == "auto" and seconds > _WORTH_COMPILING and has_compiler()):
        factor *= _COMPILED

    def step(config: Config) -> float:
        t = config.training
        return factor * step_seconds(config.model, vocab_size, t.accumulate, t.batch_size, speed)

    return step


def _shaped(
    config: Config, given: Set[str], text: Corpus, seconds: float, step: Callable[[Config], float], memory: int
) -> Config:
    """With the model and batch that were best for the training that fits, and that the text and memory allow."""
    vocab_size = text.tokenizer.vocab_size
    best = None
    for choice in _CHOICES:
        wanted = {name: getattr(choice, name) for name in (*_SHAPE, "batch_size", "matrix_learning_rate")}
        candidate = _with(config, given, wanted | {"accumulate": 1})
        model = candidate.model
        cost = seconds / step(candidate) * candidate.tokens_per_step * flops_per_token(model, vocab_size)
        small_enough = matrix_parameters(model, vocab_size) <= _PARAMETERS_PER_TOKEN * len(text.train)
        fits = memory_needed(model, vocab_size, candidate.training.batch_size) <= memory / 2
        if best is None or (cost >= choice.flops and small_enough and fits):
            best = candidate
    assert best is not None
    return best


def _scheduled(config: Config, given: Set[str], text: Corpus, seconds: float, per_step: float) -> Config:
    """With as many steps as fit, evaluations that do not take too much of the time, and generations, dropout and decay
    by the passes over the text."""
    tokens, evaluations, cost = _evaluations(config, given, text, per_step, seconds)
    most = max(seconds - evaluations * cost, seconds / 2) / per_step
    passes = _usual_passes(config, text, most)
    generations = config.training.generations
    if not given & {"preset", "generations", "patience"}:
        generations = 2 if passes > _OFTEN else 1
    steps = max(generations, int(most * _untaught(generations)))
    every = max(1, math.ceil(steps / evaluations))
    wanted: dict[str, Any] = {
        "steps": steps, "generations": generations, "eval_every": every, "checkpoint_every": every,
        "eval_tokens": tokens,
    }  # fmt: skip
    if "preset" in given:
        warmup = min(config.training.warmup_steps, steps // 5)
    else:
        warmup = max(1, steps // 30)
        wanted |= _regularised(passes * end_of(1, generations))
        config = dataclasses.replace(config, preset="planned")
    return _with(config, given, wanted | {"warmup_steps": min(warmup, steps - 1)})


def _untaught(generations: int) -> float:
    """The steps that fit into a time with so many generations, as a share of those that fit without a teacher."""
    first = end_of(1, generations)
    return first + (1 - first) / _TAUGHT


def _event(config: Config, given: Set[str], text: Corpus, per_step: float, used: float) -> Planned:
    m, t, vocab_size = config.model, config.training, text.tokenizer.vocab_size
    loss = None if "preset" in given else forecast(config, text)
    ends = datetime.now().astimezone() + timedelta(seconds=60 * t.minutes - used)
    return Planned(
        minutes=t.minutes,
        parameters=matrix_parameters(m, vocab_size),
        model={name: getattr(m, name) for name in (*_SHAPE, "block_size", "dropout")},
        batch_size=t.batch_size * t.accumulate,
        steps=t.steps,
        seconds_per_step=per_step / _untaught(t.generations),
        epochs=t.steps * config.tokens_per_step / len(text.train),
        memory=memory_needed(m, vocab_size, t.batch_size),
        loss=loss,
        low=None if loss is None else loss * (1 - _SPREAD),
        high=None if loss is None else loss * (1 + _SPREAD),
        ends=ends.isoformat(timespec="seconds"),
        generations=t.generations,
    )


def larger_passes(config: Config, vocab_size: int, memory: int) -> Config:
    """The same step in as few passes as `memory` (bytes) allows: a GPU is idle in small ones."""
    t = config.training
    for passes in range(1, t.accumulate + 1):
        batch_size = t.batch_size * t.accumulate // passes
        if t.accumulate % passes == 0 and memory_needed(config.model, vocab_size, batch_size) <= memory:
            return _with(config, set(), {"batch_size": batch_size, "accumulate": passes})
    return config


def _with(config: Config, given: Set[str], wanted: dict[str, Any]) -> Config:
    """`config` with what is wanted, except where the user has said otherwise."""
    values = config.to_dict()
    for name, value in wanted.items():
        if name not in given:
            next(group for group in (values["model"], values["training"]) if name in group)[name] = value
    return Config.from_dict(values)


def _usual_passes(config: Config, text: Corpus, steps: float) -> float:
    """In how many passes over the text a model of the usual size for it would learn as much of it by heart."""
    size = matrix_parameters(config.model, text.tokenizer.vocab_size) / len(text.train)
    return steps * config.tokens_per_step / len(text.train) * (size / _SIZE) ** (1 / 3)


def _regularised(passes: float) -> dict[str, float]:
    """The more often a text is read, the more has to be done so that it is not learned by heart."""
    dropout, decay = next((dropout, decay) for limit, dropout, decay in _REGULARISED if passes <= limit)
    return {"dropout": dropout, "weight_decay": decay, "weight_average": _AVERAGED}


def _evaluations(
    config: Config, given: Set[str], text: Corpus, per_step: float, seconds: float
) -> tuple[int, int, float]:
    """How many tokens an evaluation reads at most, how many of them, with their samples, there are to be, and the
    seconds that one takes. All together take a thirtieth of the time, but two are the least."""
    t = config.training
    per_token = 0.5 * per_step / config.tokens_per_step  # an evaluation only goes forward, not compiled
    tokens = t.eval_tokens or len(text.validation)
    if "eval_tokens" not in given:
        tokens = min(tokens, max(_FEWEST_EVALUATED, int(_EVALUATION * seconds / per_token)))
    cost = per_token * min(tokens, len(text.validation)) + 0.005 * t.sample_tokens + 0.3
    return tokens, max(2, min(20, int(seconds / 30 / cost))), cost


def forecast(config: Config, text: Corpus) -> float:
    """The validation loss to expect, in nats a token: what the best n-gram model reaches that counts as many tokens as
    training will read, times the share that models trained at this cost reached of that elsewhere."""
    tokens, V = config.training.steps * config.tokens_per_step, text.tokenizer.vocab_size
    counted = min(milestones(text.train, text.validation, V, _COUNTED, training_tokens=min(tokens, TRAINING_TOKENS)))
    # The head is left out: with a large vocabulary it is most of the cost, and adds little to what is learned.
    cost = tokens * flops_per_token(config.model, 0)
    costs, shares = zip(*_SHARES, strict=True)
    return float(np.interp(math.log(cost), np.log(costs), shares)) * counted


def compare_with_plan(events: list[dict[str, Any]], state: TrainState) -> str | None:
    """How good the plan was, in a sentence; None if there was none."""
    plan = next((line for line in events if line["event"] == "planned"), None)
    if plan is None or state.best_score is None:
        return None
    said = f"The plan said {plan['minutes']:g} min, {plan['steps']:,} steps"
    became = f"it became {state.elapsed / 60:.2f} min, {state.step:,} steps and"
    if plan["loss"] is None:
        return f"{said}; {became} a loss of {state.best_score:.2f}."
    within = "within" if plan["low"] <= state.best_score <= plan["high"] else "outside"
    return (
        f"{said} and a loss of {plan['loss']:.2f} ({plan['low']:.2f} to {plan['high']:.2f}); "
        f"{became} {state.best_score:.2f}, {within} that range."
    )
