"""Plans a run for `--minutes`: model size, batch, steps and schedule, and the loss to expect.

Comments say which of the figures below were measured and which are guesses from measurements; docs/LOG.md has the
experiments. A plan is an estimate. The clock, not the plan, ends a run: see training/clock.py.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Set
from datetime import timedelta
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F

from groundling.analysis.ngrams import TRAINING_TOKENS, ngram_losses
from groundling.config import Config, ModelSettings
from groundling.data.mixture import Text, distinct_tokens, parts_of
from groundling.machine import Machine, Speed, has_compiler, measure_speed
from groundling.model.cross_entropy import LARGE_VOCABULARY
from groundling.model.describe import bytes_saved, flops_per_token, matrix_parameters
from groundling.model.gpt import GPT
from groundling.tasks.self_distillation import end_of
from groundling.training.clock import local_time
from groundling.training.events import Planned
from groundling.training.state import TrainState

DEFAULT_MINUTES = 5.0
_SHAPE = ("n_layer", "n_head", "n_embd")
# Without dropout: PyTorch imports its compiler for the operator of our masks, which takes a second.
_REFERENCE = ModelSettings(
    block_size=256, n_layer=2, n_head=3, n_embd=192, norm="rmsnorm", position="rope", mlp="swiglu"
)
_REFERENCE_VOCABULARY, _REFERENCE_BATCH = 96, 16
_COMPILED, _WORTH_COMPILING = 0.75, 200.0  # a compiled step's share of the time, and the seconds from which it pays
_EVALUATION = 0.04  # the share of the time that an evaluation may take; it reads fewer tokens if it would take longer
_FEWEST_EVALUATED = 8192
_OUTSIDE = 8.0  # seconds of a run outside of steps: imports, reading the text, the last evaluation, the plot
_KEPT = {"none": 100, "attention": 70, "blocks": 5}  # bytes of activations by --recompute, per token, layer and width
_LONGER = {"none": 1.0, "attention": 1.15, "blocks": 1.35}  # the time of a pass
_OPTIMIZER = {32: 30, 8: 130}  # bytes that its step moves, per parameter, by --optimizer-bits
_LOGITS_AT_ONCE = 1 << 24
_MOST_MEMORY = 0.8  # of all memory, from which on something is computed again
_SIZE_SETTINGS = (*_SHAPE, "batch_size", "matrix_learning_rate")
# From which training cost (in floating-point operations) on they are best. On a text of a million tokens, the first two
# were the best we measured. The third was as good as they are at 3e14, and better than the fourth at 1.5e15. Where the
# next two start is extrapolated.
_SIZES = (
    (0, (6, 2, 128, 8, 0.02)),
    (1.5e13, (6, 2, 128, 16, 0.02)),
    (2e14, (6, 3, 192, 16, 0.02)),
    (2.5e15, (6, 4, 256, 16, 0.015)),
    (1e16, (6, 6, 384, 16, 0.015)),
)
_PARAMETERS_PER_TOKEN = 5.0  # of training text, at most; nothing larger was tried
# Training cost without the output head, and the loss there as a share of the best n-gram model's, counted on as many
# tokens: measured on seven texts up to 2e13, on Tiny Shakespeare above.
_SHARES = ((5e12, 0.92), (1e13, 0.865), (1.8e13, 0.81), (6e13, 0.78), (1e14, 0.765), (4e14, 0.755), (1.1e15, 0.75))
_COUNTED = 4  # the longest n-grams for that; longer ones profit from text that repeats word for word
# Dropout and weight decay by epochs: up to so many in the first generation, at 1.3 parameters per token. Models with a
# teacher take twice as many without memorizing the text. Measured up to 36 epochs, on a slice of a training text: up to
# 23, decay without dropout was better than any dropout, and with a larger model, dropout 0.05 was better than 0.15. The
# rest is extrapolated.
_REGULARISED = ((8, 0.0, 0.5), (28, 0.0, 0.7), (80, 0.05, 0.7), (math.inf, 0.1, 0.7))
_SIZE = 1.3
_OFTEN = 20  # such epochs in all from which a plan has two generations; up to 17, a second one gained nothing
_TAUGHT = 1.3  # the time of a step with a teacher, in steps without
_AVERAGED = 0.06  # of all steps; a third of that or twice as much was little worse, five times as much far worse
_SPREAD = 0.12  # how far the loss may be from the forecast, since texts differ; the largest error in 18 runs was 0.11


def pass_seconds(model: ModelSettings, vocab_size: int, batch_size: int, speed: Speed) -> float:
    """Estimate the seconds of one forward and backward pass: matrix products, memory traffic and overhead."""
    tokens = batch_size * model.block_size
    products = flops_per_token(model, vocab_size) * tokens / (speed.gflops * 1e9)
    # 150 bytes are moved outside of matrix products, per element of a layer's activations.
    copies = tokens * model.n_layer * model.n_embd * 150 / (speed.gbytes * 1e9)
    return products + copies + 0.001 * model.n_layer


def benchmark_pass(machine: Machine) -> float:
    """Measure the seconds of a forward and backward pass of a small reference model on this machine, not compiled."""
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
    return min(seconds)  # the others were disturbed, or include the set-up of libraries


def memory_needed(
    model: ModelSettings, vocab_size: int, batch_size: int, recompute: str = "none", optimizer_bits: int = 32
) -> int:
    """Estimate the bytes that training takes: PyTorch itself, five floats per parameter (three, and two moments in 8
    bits), and activations."""
    tokens, kept = batch_size * model.block_size, _KEPT[recompute]
    layers = tokens * model.n_embd * (model.n_layer * kept + _KEPT["none"] - kept)  # a third less if compiled
    logits = tokens * vocab_size
    if vocab_size >= LARGE_VOCABULARY:  # a few positions at a time
        logits = min(logits, _LOGITS_AT_ONCE)
    parameters = 20 * matrix_parameters(model, vocab_size) - bytes_saved(model, vocab_size, optimizer_bits)
    return round(0.45e9 + parameters + layers + 24 * logits)


def with_recompute(config: Config, given: Set[str], vocab_size: int, memory: float) -> Config:
    """The configuration with as little recomputation as makes it fit into `memory` bytes, or with most if none does."""
    for recompute in _KEPT:
        candidate = _with(config, given, {"recompute": recompute})
        t = candidate.training
        if memory_needed(candidate.model, vocab_size, t.batch_size, t.recompute, t.optimizer_bits) <= memory:
            break
    return candidate


def plan(config: Config, given: Set[str], text: Text, machine: Machine, used: float) -> tuple[Config, Planned | None]:
    """Choose all settings that the user did not, for this machine, text and time.

    Args:
        given: the settings that the user chose, and `preset` if there is one. They are not changed.
        used: seconds of the time that are over.
    """
    on_gpu = machine.device.type == "cuda"
    memory = torch.cuda.get_device_properties(machine.device).total_memory if on_gpu else psutil.virtual_memory().total
    if on_gpu:
        config = _with(config, given, {"log_every": 10})  # reading the loss of each step would make the GPU wait
        if not given & {"batch_size", "accumulate"}:
            config = larger_passes(config, text.tokenizer.vocab_size, memory // 2)
    if not config.training.minutes:
        return with_recompute(config, given, text.tokenizer.vocab_size, _MOST_MEMORY * memory), None
    seconds = max(60 * config.training.minutes - used - _OUTSIDE, 1.0)
    step = _step_timer(machine, text.tokenizer.vocab_size, seconds)
    if not given & {"preset", *_SHAPE}:
        config = _sized(config, given, text, seconds, step, memory)
    else:
        config = with_recompute(config, given, text.tokenizer.vocab_size, _MOST_MEMORY * memory)
    config = _scheduled(config, given, text, seconds, step(config))
    return config, _event(config, given, text, step(config), used)


def _step_timer(machine: Machine, vocab_size: int, seconds: float) -> Callable[[Config], float]:
    """A function that estimates the seconds per step of a configuration, in a run of `seconds` on this machine."""
    speed = measure_speed(machine, _REFERENCE.n_embd, 4096)
    # A measured pass corrects for what the arithmetic ignores: caches, other programs, a slow Python.
    factor = benchmark_pass(machine) / pass_seconds(_REFERENCE, _REFERENCE_VOCABULARY, _REFERENCE_BATCH, speed)
    if machine.compile == "on" or (machine.compile == "auto" and seconds > _WORTH_COMPILING and has_compiler()):
        factor *= _COMPILED

    def step(config: Config) -> float:
        m, t = config.model, config.training
        moved = _OPTIMIZER[t.optimizer_bits] * matrix_parameters(m, vocab_size)
        optimizer = moved / (speed.gbytes * 1e9) + 0.001 * m.n_layer
        passes = t.accumulate * pass_seconds(m, vocab_size, t.batch_size, speed) * _LONGER[t.recompute]
        return factor * (passes / config.machine.processes + optimizer)

    return step


def _sized(
    config: Config, given: Set[str], text: Text, seconds: float, step: Callable[[Config], float], memory: int
) -> Config:
    """Choose the model and batch that are best for the training that fits the time, and that fit text and memory."""
    vocab_size = text.tokenizer.vocab_size
    for flops, size in reversed(_SIZES):
        candidate = _with(config, given, dict(zip(_SIZE_SETTINGS, size, strict=True)) | {"accumulate": 1})
        candidate = with_recompute(candidate, given, vocab_size, memory / 2)
        model, t = candidate.model, candidate.training
        cost = seconds / step(candidate) * candidate.tokens_per_step * flops_per_token(model, vocab_size)
        small_enough = matrix_parameters(model, vocab_size) <= _PARAMETERS_PER_TOKEN * distinct_tokens(text)
        fits = memory_needed(model, vocab_size, t.batch_size, t.recompute, t.optimizer_bits) <= memory / 2
        if cost >= flops and small_enough and fits:
            break
    return candidate  # the smallest if none fits


def _scheduled(config: Config, given: Set[str], text: Text, seconds: float, per_step: float) -> Config:
    """Choose as many steps as fit, the evaluations, and generations, dropout and decay by the number of epochs."""
    eval_tokens, evaluations, cost = _evaluations(config, given, text, per_step, seconds)
    most = max(seconds - evaluations * cost, seconds / 2) / per_step
    epochs = _equivalent_epochs(config, text, most)
    generations = config.training.generations
    if not given & {"preset", "generations", "patience"}:
        generations = 2 if epochs > _OFTEN else 1
    steps = max(generations, int(most * _steps_share(generations)))
    every = max(1, math.ceil(steps / evaluations))
    wanted: dict[str, Any] = {"steps": steps, "generations": generations, "eval_tokens": eval_tokens}
    wanted |= {"eval_every": every, "checkpoint_every": every}
    if "preset" in given:
        warmup = min(config.training.warmup_steps, steps // 5)
    else:
        warmup = max(1, steps // 30)
        first = epochs * end_of(1, generations)
        dropout, decay = next((dropout, decay) for limit, dropout, decay in _REGULARISED if first <= limit)
        wanted |= {"dropout": dropout, "weight_decay": decay, "weight_average": _AVERAGED}
        config = dataclasses.replace(config, preset="planned")
    return _with(config, given, wanted | {"warmup_steps": min(warmup, steps - 1)})


def _equivalent_epochs(config: Config, text: Text, steps: float) -> float:
    """The epochs in which a model of 1.3 parameters per token would memorize as much of the text."""
    distinct = distinct_tokens(text)
    size = matrix_parameters(config.model, text.tokenizer.vocab_size) / distinct
    return steps * config.tokens_per_step / distinct * (size / _SIZE) ** (1 / 3)


def _steps_share(generations: int) -> float:
    """The steps that fit the time with so many generations, as a share of those that fit without a teacher."""
    first = end_of(1, generations)
    return first + (1 - first) / _TAUGHT


def _evaluations(
    config: Config, given: Set[str], text: Text, per_step: float, seconds: float
) -> tuple[int, int, float]:
    """Tokens per evaluation at most, number of evaluations, and the seconds of one, with its sample.

    All together take a thirtieth of the time, but there are at least two.
    """
    t = config.training
    per_token = 0.5 * per_step / config.tokens_per_step  # an evaluation is a forward pass only, not compiled
    validation = text.token_counts[1]
    tokens = t.eval_tokens or validation
    if "eval_tokens" not in given:
        tokens = min(tokens, max(_FEWEST_EVALUATED, int(_EVALUATION * seconds / per_token)))
    cost = per_token * min(tokens, validation) + 0.005 * t.sample_tokens + 0.3
    return tokens, max(2, min(20, int(seconds / 30 / cost))), cost


def _event(config: Config, given: Set[str], text: Text, per_step: float, used: float) -> Planned:
    m, t, vocab_size = config.model, config.training, text.tokenizer.vocab_size
    loss = None if "preset" in given else forecast(config, text)
    ends = local_time() + timedelta(seconds=60 * t.minutes - used)
    return Planned(
        minutes=t.minutes,
        parameters=matrix_parameters(m, vocab_size),
        model={name: getattr(m, name) for name in (*_SHAPE, "block_size", "dropout")},
        batch_size=t.batch_size * t.accumulate,
        steps=t.steps,
        seconds_per_step=per_step / _steps_share(t.generations),
        epochs=t.steps * config.tokens_per_step / text.token_counts[0],
        memory=memory_needed(m, vocab_size, t.batch_size, t.recompute, t.optimizer_bits),
        loss=loss,
        low=None if loss is None else loss * (1 - _SPREAD),
        high=None if loss is None else loss * (1 + _SPREAD),
        ends=ends.isoformat(timespec="seconds"),
        generations=t.generations,
    )


def larger_passes(config: Config, vocab_size: int, memory: int) -> Config:
    """Split a step into as few micro-batches as `memory` (bytes) allows, because a GPU is idle in small ones."""
    t = config.training
    for micro_batches in range(1, t.accumulate + 1):
        batch_size = t.batch_size * t.accumulate // micro_batches
        needed = memory_needed(config.model, vocab_size, batch_size, "none", t.optimizer_bits)
        if t.accumulate % micro_batches == 0 and needed <= memory:
            return _with(config, set(), {"batch_size": batch_size, "accumulate": micro_batches})
    return config


def _with(config: Config, given: Set[str], wanted: dict[str, Any]) -> Config:
    """`config` with the wanted settings, except those that the user has given."""
    values = config.to_dict()
    for name, value in wanted.items():
        if name not in given:
            next(group for group in (values["model"], values["training"]) if name in group)[name] = value
    return Config.from_dict(values)


def forecast(config: Config, text: Text) -> float:
    """The expected validation loss, in nats per token.

    It is the loss of the best n-gram model that counts as many tokens as training will read, times the share of that
    loss which other models reached at this training cost. Of a mixture, each text is counted alone.
    """
    tokens, V, counted = config.training.steps * config.tokens_per_step, text.tokenizer.vocab_size, 0.0
    for part in parts_of(text):
        read, corpus = max(min(round(part.mean * tokens), TRAINING_TOKENS), 1), part.corpus
        counted += part.end * min(ngram_losses(corpus.train, corpus.validation, V, _COUNTED, training_tokens=read))
    # Without the head: in a large vocabulary it is most of the cost, and adds little to what is learned.
    cost = tokens * flops_per_token(config.model, 0)
    costs, shares = zip(*_SHARES, strict=True)
    return float(np.interp(math.log(cost), np.log(costs), shares)) * counted


def compare_with_plan(events: list[dict[str, Any]], state: TrainState) -> str | None:
    """A sentence that compares a run with its plan, or None without a plan."""
    plan = next((line for line in events if line["event"] == "planned"), None)
    if plan is None or state.best_score is None:
        return None
    planned, within = f"{plan['minutes']:g} min, {plan['steps']:,} steps", ""
    if plan["loss"] is not None:
        planned += f", loss {plan['loss']:.2f} ({plan['low']:.2f} to {plan['high']:.2f})"
        within = f" ({'within' if plan['low'] <= state.best_score <= plan['high'] else 'outside'} the range)"
    actual = f"{state.elapsed / 60:.2f} min, {state.step:,} steps, loss {state.best_score:.2f}{within}"
    return f"Planned: {planned}. Actual: {actual}."
