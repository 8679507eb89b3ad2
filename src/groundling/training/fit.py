"""The one training loop."""

from __future__ import annotations

import functools
import math
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np
import torch

from groundling.config import TrainingSettings
from groundling.corpus.batches import Batches
from groundling.evaluation.score import Interrupted, Score
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.training.checkpoint import TrainState
from groundling.training.events import Evaluation, Event, Notice, Sample, Saved, Step
from groundling.training.objective import Objective
from groundling.training.optimizer import Optimizers
from groundling.training.schedule import rate_factor


@dataclass(frozen=True)
class Actions:
    """What `fit` does beside training, supplied by whoever calls it."""

    evaluate: Callable[[], Score]  # may raise Interrupted
    sample: Callable[[], tuple[str, str]]  # prompt and text
    save: Callable[[], Path]
    stopped: Callable[[], bool]
    emit: Callable[[Event], None]


def fit(
    model: GPT,
    objective: Objective,
    batches: Batches,
    optimizer: Optimizers,
    state: TrainState,
    settings: TrainingSettings,
    machine: Machine,
    actions: Actions,
) -> bool:
    """Train from `state.step` to `settings.steps`; `state` is moved along.

    Returns whether it came to the end; if `actions.stopped()` ends it before, everything is saved.
    Raises FloatingPointError if the loss is not finite: the weights are then those of the last checkpoint's run.
    """
    # Evaluation and sampling come in other shapes, for each of which it would be compiled again: they run as they are.
    forward = functools.partial(model, through=machine.caller(lambda sentence: actions.emit(Notice(sentence))))
    clock = Clock(state.elapsed, settings)
    # Dropout is seeded in every micro-step; the caller's own random numbers are left alone.
    with torch.random.fork_rng(devices=[machine.device] if machine.device.type == "cuda" else []):
        while True:
            improved = False
            if _evaluation_is_due(state, settings):
                try:
                    improved = _evaluate(state, settings, actions, clock)
                except Interrupted:
                    pass  # `stopped` says so below; the evaluation is made when the run is resumed
            finished = state.step == settings.steps and state.evaluated_step == state.step
            checkpoint_is_due = state.step % settings.checkpoint_every == 0 and state.step > 0
            if improved or finished or checkpoint_is_due or actions.stopped():
                state.elapsed = clock.elapsed()
                actions.emit(Saved(state.step, actions.save().name))
            if finished:
                return True
            if actions.stopped():
                return False

            clock.start_step()
            factor = rate_factor((state.step + 1) / settings.steps, settings)
            optimizer.schedule(factor)
            rate = factor * settings.learning_rate
            loss, norm = train_step(forward, model, objective, batches, optimizer, state.step, settings, machine)
            state.step += 1
            state.tokens += batches.tokens_per_step
            state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
            seconds = clock.end_step()
            if state.step % settings.log_every == 0 or state.step == settings.steps:
                speed = batches.tokens_per_step / seconds
                left = clock.seconds_left(state.step)
                actions.emit(Step(state.step, loss, rate, state.tokens, speed, clock.elapsed(), left, norm))


def train_step(
    forward: Callable[..., torch.Tensor],
    model: GPT,
    objective: Objective,
    batches: Batches,
    optimizer: Optimizers,
    step: int,
    settings: TrainingSettings,
    machine: Machine,
) -> tuple[float, float]:
    """One optimizer step. Returns the loss (nats a token) and the gradient's norm."""
    model.train()
    total = torch.zeros((), device=machine.device)
    for micro_step in range(settings.accumulate):
        torch.manual_seed(_dropout_seed(settings.seed, step, micro_step))
        tokens, targets = (part.to(machine.device, non_blocking=True) for part in batches(step, micro_step))
        with machine.autocast():
            loss = objective(forward, (tokens, targets))
        (loss / settings.accumulate).backward()
        total += loss.detach()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or math.inf))
    mean_loss = float(total) / settings.accumulate
    if not (math.isfinite(mean_loss) and math.isfinite(norm)):
        # Before the optimizer's step: no weight has been touched by it.
        raise FloatingPointError(
            f"Training diverged: in step {step + 1} the loss is {mean_loss} and the gradient's norm {norm}. "
            "A lower --learning-rate, a longer --warmup-steps or --dtype float32 helps; checkpoints are as they were."
        )
    optimizer.step()
    optimizer.zero_grad()
    return mean_loss, norm


def _dropout_seed(seed: int, step: int, micro_step: int) -> int:
    words = np.random.SeedSequence([seed, step, micro_step]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _evaluation_is_due(state: TrainState, settings: TrainingSettings) -> bool:
    due = state.step % settings.eval_every == 0 or state.step == settings.steps
    return due and state.evaluated_step != state.step


def _evaluate(
    state: TrainState,
    settings: TrainingSettings,
    actions: Actions,
    clock: Clock,
) -> bool:
    """Score the validation part and write a sample. Returns whether this is the best so far."""
    start = time.perf_counter()
    result = actions.evaluate()
    training_loss = state.loss_sum / state.loss_count if state.loss_count else None
    # An untrained model is never the best one: a run that diverges at once must not be told to keep it.
    best = state.step > 0 and (state.best_loss is None or result.loss < state.best_loss)
    if best:
        state.best_loss, state.best_step = result.loss, state.step
    actions.emit(Evaluation(state.step, result.loss, result.bits_per_byte, training_loss, best, clock.elapsed()))
    every = settings.sample_every if settings.sample_every is not None else settings.eval_every
    if every and settings.sample_tokens and (state.step % every == 0 or state.step == settings.steps):
        prompt, text = actions.sample()
        actions.emit(Sample(state.step, prompt, text))
    state.evaluated_step, state.loss_sum, state.loss_count = state.step, 0.0, 0
    clock.count_evaluation(time.perf_counter() - start)
    return best


class Clock:
    """How long it took, and how long it will take: steps and evaluations apart, since they differ in length."""

    def __init__(self, elapsed_before: float, settings: TrainingSettings) -> None:
        self._start = time.perf_counter() - elapsed_before
        self._settings = settings
        self._steps: deque[float] = deque(maxlen=50)
        self._evaluations: deque[float] = deque(maxlen=10)
        self._step_start = 0.0

    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    def start_step(self) -> None:
        self._step_start = time.perf_counter()

    def end_step(self) -> float:
        self._steps.append(time.perf_counter() - self._step_start)
        return self._steps[-1]

    def count_evaluation(self, seconds: float) -> None:
        self._evaluations.append(seconds)

    def seconds_left(self, step: int) -> float:
        steps, every = self._settings.steps, self._settings.eval_every
        # The one after the last step comes in any case.
        evaluations = (steps - 1) // every - step // every + 1
        per_step, per_evaluation = (statistics.median(d) if d else 0.0 for d in (self._steps, self._evaluations))
        return (steps - step) * per_step + evaluations * per_evaluation


class StopRequest:
    """While it is entered, the first Ctrl-C (SIGINT), SIGTERM or SIGHUP asks for a stop; the second one kills."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __call__(self) -> bool:
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number
        # Straight to the file descriptor: a display may hold its lock just now.
        os.write(2, b"\nStopping: this step is finished and saved first; once more to quit at once.\n")

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                if (number := getattr(signal, name, None)) is not None:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
