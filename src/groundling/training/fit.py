"""The one training loop."""

from __future__ import annotations

import math
import os
import signal
import threading
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
from groundling.training.clock import Clock
from groundling.training.events import Evaluation, Event, Sample, Saved, Step
from groundling.training.objective import Objective
from groundling.training.optimizer import Optimizers
from groundling.training.schedule import rate_factor

_STEPS_BEFORE_SCALING_UP = 1000


@dataclass(frozen=True)
class Actions:
    """What `fit` does beside training, supplied by whoever calls it."""

    evaluate: Callable[[], Score]  # may raise Interrupted
    sample: Callable[[int], Sample]  # given the step
    save: Callable[[], Path]
    stopped: Callable[[], bool]
    emit: Callable[[Event], None]


def fit(
    model: GPT,
    forward: Callable[..., torch.Tensor],
    objective: Objective,
    batches: Batches,
    optimizer: Optimizers,
    state: TrainState,
    settings: TrainingSettings,
    machine: Machine,
    actions: Actions,
) -> bool:
    """Train `model` from `state.step` to `settings.steps`, or until `settings.minutes` are over; `state` moves along.

    `forward` is the model itself, or the model compiled. Evaluation and sampling come in other shapes, for each of
    which it would be compiled again, so they run as they are.

    Returns whether it came to the end; if `actions.stopped()` ends it before, everything is saved.
    Raises DivergedError if the loss is not finite; nothing of that is saved.
    """
    clock = Clock(state.elapsed, settings)
    over = False
    if _out_of_patience(state, settings):  # a run that had ended so, and is to go on
        state.evaluations_since_best = 0
    # Dropout is seeded in every micro-step; the caller's own random numbers are left alone.
    with machine.own_randomness():
        while True:
            over = over or clock.is_over(state.step)  # once for all: the evaluation below takes time too
            improved = False
            if _evaluation_is_due(state, settings, over):
                try:
                    with clock.timing("evaluation"):
                        improved = _evaluate(state, settings, actions, clock, over)
                except Interrupted:
                    pass  # `stopped` says so below; the evaluation is made when the run is resumed
                over = over or _out_of_patience(state, settings)
            finished = over and state.evaluated_step == state.step
            checkpoint_is_due = state.step % settings.checkpoint_every == 0 and state.step > 0
            if improved or finished or checkpoint_is_due or actions.stopped():
                state.elapsed = clock.elapsed()
                with clock.timing("save"):
                    checkpoint = actions.save()
                actions.emit(Saved(state.step, checkpoint.name))
            if finished:
                return True
            if actions.stopped():
                return False

            outcomes: list[torch.Tensor] = []
            with clock.timing("step") as timing:
                while not outcomes or (_sees_late(machine) and _is_unseen(state, settings, actions, clock)):
                    factor = rate_factor(clock.progress(state.step), settings)
                    optimizer.schedule(factor)
                    outcome = train_step(forward, model, objective, batches, optimizer, state, settings, machine)
                    outcomes.append(outcome)
                    state.step += 1
                    state.tokens += batches.tokens_per_step
                results = torch.stack(outcomes).tolist()  # a GPU is waited for here, and nowhere before
                timing.times = len(results)
            for number, (loss, norm) in enumerate(results, state.step - len(results) + 1):
                if _sees_late(machine) and not (math.isfinite(loss) and math.isfinite(norm)):
                    raise DivergedError(number, loss, norm)
                state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
            if state.step % settings.log_every == 0 or state.step == settings.steps:
                rate, speed = factor * settings.learning_rate, batches.tokens_per_step / clock.typical("step")
                left = clock.seconds_left(state.step)
                # JSON has no infinity.
                shown = norm if math.isfinite(norm) else None
                actions.emit(Step(state.step, loss, rate, state.tokens, speed, clock.elapsed(), left, shown))


def train_step(
    forward: Callable[..., torch.Tensor],
    model: GPT,
    objective: Objective,
    batches: Batches,
    optimizer: Optimizers,
    state: TrainState,
    settings: TrainingSettings,
    machine: Machine,
) -> torch.Tensor:
    """One optimizer step. Returns the loss (nats a token) and the gradient's norm, (2,), on the machine's device.

    In float16 small gradients would vanish: the loss is scaled up before they are computed, and they are scaled down
    after (Micikevicius et al., "Mixed Precision Training", 2018). Where they leave the range, the step is left out and
    the scale halved; its norm is then infinite or not a number.

    Raises DivergedError, before any weight is touched, if a result is not finite; but see `_sees_late`.
    """
    model.train()
    scale = state.loss_scale if machine.dtype == torch.float16 else 1.0
    total = torch.zeros((), device=machine.device)
    for micro_step in range(settings.accumulate):
        torch.manual_seed(_dropout_seed(settings.seed, state.step, micro_step))
        tokens, targets = (part.to(machine.device, non_blocking=True) for part in batches(state.step, micro_step))
        with machine.autocast():
            loss = objective(forward, (tokens, targets))
        (loss * (scale / settings.accumulate)).backward()
        total += loss.detach()
    if scale != 1.0:
        torch._foreach_div_([p.grad for p in model.parameters() if p.grad is not None], scale)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or math.inf)
    outcome = torch.stack((total / settings.accumulate, norm))
    in_range = _sees_late(machine) or bool(outcome.isfinite().all())
    if not in_range and scale <= 1.0:
        raise DivergedError(state.step + 1, *outcome.tolist())
    if in_range:
        optimizer.step()
    optimizer.zero_grad()
    if scale != 1.0:
        _rescale(state, in_range)
    return outcome


def _sees_late(machine: Machine) -> bool:
    """Whether several steps are started before the results of the first are looked at: a look would make a GPU wait
    for Python and Python for the GPU. (float16 looks at each, to set its scale.) Nothing is saved unseen."""
    return machine.device.type == "cuda" and machine.dtype != torch.float16


def _is_unseen(state: TrainState, settings: TrainingSettings, actions: Actions, clock: Clock) -> bool:
    """Whether another step may follow before anything is told, evaluated or saved."""
    ends = (settings.log_every, settings.eval_every, settings.checkpoint_every)
    return not (any(state.step % end == 0 for end in ends) or clock.is_over(state.step) or actions.stopped())


class DivergedError(FloatingPointError):
    """The loss or the gradient of `step` is no finite number."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        super().__init__(
            f"Training diverged: in step {step} the loss is {loss} and the gradient's norm {norm}. "
            "A lower --learning-rate, a longer --warmup-steps or --dtype float32 helps; checkpoints are as they were."
        )
        self.step = step


def _rescale(state: TrainState, in_range: bool) -> None:
    state.steps_in_range = state.steps_in_range + 1 if in_range else 0
    if not in_range:
        state.loss_scale = max(state.loss_scale / 2, 1.0)
    elif state.steps_in_range % _STEPS_BEFORE_SCALING_UP == 0:
        state.loss_scale *= 2


def _dropout_seed(seed: int, step: int, micro_step: int) -> int:
    words = np.random.SeedSequence([seed, step, micro_step]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _evaluation_is_due(state: TrainState, settings: TrainingSettings, over: bool) -> bool:
    # An untrained model is not worth the time of a run that has only so many minutes.
    due = state.step % settings.eval_every == 0 and (state.step > 0 or not settings.minutes)
    return (due or over) and state.evaluated_step != state.step


def _out_of_patience(state: TrainState, settings: TrainingSettings) -> bool:
    return 0 < settings.patience <= state.evaluations_since_best


def _evaluate(
    state: TrainState,
    settings: TrainingSettings,
    actions: Actions,
    clock: Clock,
    over: bool,
) -> bool:
    """Score the validation part and write a sample. Returns whether this is the best so far."""
    result = actions.evaluate()
    training_loss = state.loss_sum / state.loss_count if state.loss_count else None
    # An untrained model is never the best one: a run that diverges at once must not be told to keep it.
    best = state.step > 0 and (state.best_loss is None or result.loss < state.best_loss)
    state.evaluations_since_best = 0 if best else state.evaluations_since_best + (state.step > 0)
    if best:
        state.best_loss, state.best_step = result.loss, state.step
    actions.emit(Evaluation(state.step, result.loss, result.bits_per_byte, training_loss, best, clock.elapsed()))
    every = settings.sample_every if settings.sample_every is not None else settings.eval_every
    if every and settings.sample_tokens and (state.step % every == 0 or over):
        actions.emit(actions.sample(state.step))
    state.evaluated_step, state.loss_sum, state.loss_count = state.step, 0.0, 0
    return best


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
