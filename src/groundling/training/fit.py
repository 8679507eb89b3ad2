"""The one training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from groundling.config import TrainingSettings
from groundling.data.batches import Batches
from groundling.evaluation.score import Interrupted, Score
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.training.checkpoints import TrainState
from groundling.training.clock import Clock
from groundling.training.divergence import Fault, check_finite, fault_in, note_bad, note_sound, roll_back
from groundling.training.events import Evaluation, Event, Generation, Notice, Sample, Saved, Skipped, Step
from groundling.training.generations import ends_now, progress
from groundling.training.objective import Objective
from groundling.training.optimizer import Optimizers
from groundling.training.out_of_memory import ADVICE, HalfDoneError, OutOfMemoryError, is_out_of_memory, told_as
from groundling.training.schedule import rate_factor
from groundling.training.step import Forward, sees_late, train_step


@dataclass(frozen=True)
class Actions:
    """What `fit` does beside training, supplied by whoever calls it."""

    evaluate: Callable[[], Score]  # may raise Interrupted
    sample: Callable[[int], Sample]  # given the step; may raise Interrupted
    save: Callable[[], Path]
    restore: Callable[[], TrainState]  # model, optimizer and state as last saved, or as at the start
    beginning: Callable[[int], Mapping[str, torch.Tensor]]  # the weights that a generation begins with
    taught: Callable[[], Objective]  # what is learned, now that the optimizer has a teacher
    shrink: Callable[[str], tuple[Forward, Batches, TrainingSettings]]  # what to go on with in less memory
    stopped: Callable[[], bool]
    emit: Callable[[Event], None]


def fit(
    model: GPT,
    forward: Forward,
    objective: Objective,
    batches: Batches,
    optimizer: Optimizers,
    state: TrainState,
    settings: TrainingSettings,
    machine: Machine,
    actions: Actions,
) -> bool:
    """Train `model` from `state.step` to `settings.steps`, or until `settings.minutes` are over; `state` moves along.

    Each of `settings.generations` has the whole schedule. The first one learns by `objective`, and each of the others
    from the one before, too.

    `forward` is the model itself, or the model compiled. Evaluation and sampling come in other shapes, for each of
    which it would be compiled again, so they run as they are.

    Returns whether it came to the end; if `actions.stopped()` ends it before, everything is saved.
    Raises DivergedError if rescue.py knows no way on, and OutOfMemoryError if nothing smaller can be tried.
    """
    clock = Clock(state.elapsed, settings)
    if _out_of_patience(state, settings):  # a run that had ended so, and is to go on
        state.evaluations_since_best = 0
    # Dropout is seeded in every micro-step; the caller's own random numbers are left alone.
    with machine.own_randomness():
        return _Loop(model, forward, objective, batches, optimizer, state, settings, machine, actions, clock).run()


@dataclass
class _Loop:
    """What `fit` was given, of which `forward`, `batches` and `settings` change where memory runs out."""

    model: GPT
    forward: Forward
    objective: Objective
    batches: Batches
    optimizer: Optimizers
    state: TrainState
    settings: TrainingSettings
    machine: Machine
    actions: Actions
    clock: Clock
    taught: Objective | None = None  # by the teacher of this generation, once that was asked for

    def run(self) -> bool:
        """Train, and rescue the run from what it meets, until it ends or is stopped."""
        while True:
            self.taught = None  # where it goes back, the teacher may be another one
            try:
                return self._until_trouble()
            except Fault as fault:
                self.optimizer.zero_grad()
                actions = self.actions
                roll_back(fault, self.state, self.settings, self.machine, actions.restore, actions.emit)
                continue
            except Exception as error:
                if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
                    raise
                # What is not seen yet is as good as half done.
                back = isinstance(error, HalfDoneError) or sees_late(self.machine)
            # Not before the error is gone, and with it all that the pass had computed.
            self.optimizer.zero_grad()
            if back:
                vars(self.state).update(vars(self.actions.restore()))
            self.forward, self.batches, self.settings = self.actions.shrink("in a training step")

    def _until_trouble(self) -> bool:
        """The loop itself. Raises Fault, or whatever says that memory ran out."""
        state, settings, actions, clock = self.state, self.settings, self.actions, self.clock
        over = False
        while True:
            over = over or clock.is_over(state.step)  # once for all: the evaluation below takes time too
            ends, improved = over or ends_now(state, settings, clock), False
            if _evaluation_is_due(state, settings, ends):
                try:
                    with clock.timing("evaluation"):
                        improved = _evaluate(state, settings, actions, clock, self.optimizer, ends)
                except Interrupted:
                    pass  # `stopped` says so below; the evaluation is made when the run is resumed
                over = over or _out_of_patience(state, settings)
            ends = (ends or over) and state.evaluated_step == state.step
            finished = over and ends
            due = improved or ends or (state.step % settings.checkpoint_every == 0 and state.step > 0)
            if due or actions.stopped():
                self._save(due)
            if finished:
                return True
            if actions.stopped():
                return False
            if ends:
                self._succeed()
            if state.step in state.passed_over:
                state.step += 1
                continue
            try:
                with clock.timing("step") as timing:
                    results, cause, factor = self._steps()
                    timing.times = len(results)
            except Interrupted:
                continue  # what is learned is saved above; the step is made when the run is resumed
            self._take_in(results, cause)
            if not cause and (state.step % settings.log_every == 0 or state.step == settings.steps):
                self._tell(results[-1], factor)

    def _succeed(self) -> None:
        """The model so far becomes the teacher of a new one."""
        state = self.state
        state.generation, state.born, state.born_at = state.generation + 1, state.step, self.clock.elapsed()
        state.recent_losses, state.bad_steps = [], []  # a new model's losses are no spikes
        self.optimizer.succeed()
        self.model.load_state_dict(self.actions.beginning(state.generation))
        self.taught = None
        self.actions.emit(Generation(state.step, state.generation))

    def _save(self, due: bool) -> None:
        """`due` is a checkpoint that stands there as a matter of course, and not because somebody stopped the run."""
        state = self.state
        check_finite(state.step, self.model, self.optimizer)
        if due and not state.bad_steps:
            state.sound_step = state.step
        state.elapsed = self.clock.elapsed()
        with self.clock.timing("save"), told_as(f"saving step {state.step:,}"):
            checkpoint = self.actions.save()
        self.actions.emit(Saved(state.step, checkpoint.name))

    def _steps(self) -> tuple[list[list[float]], str, float]:
        """One step, or all up to where the results are looked at: loss and norm of each, why the last one was left out
        if it was, and the share of the learning rates that it had. Raises Interrupted before anything is changed."""
        state, settings, actions = self.state, self.settings, self.actions
        outcomes: list[torch.Tensor] = []
        while not outcomes or (sees_late(self.machine) and _is_unseen(state, settings, actions, self.clock)):
            factor = state.rate_share * rate_factor(progress(state, settings, self.clock), settings)
            self.optimizer.schedule(factor)
            outcome, cause = train_step(
                self.forward, self.model, self._objective(), self.batches, self.optimizer, state, settings,
                self.machine, (lambda: False) if outcomes else actions.stopped,
            )  # fmt: skip
            outcomes.append(outcome)
            state.step += 1
        return torch.stack(outcomes).tolist(), cause, factor  # a GPU is waited for here, and nowhere before

    def _objective(self) -> Objective:
        if self.state.generation == 1:
            return self.objective
        if self.taught is None:
            self.taught = self.actions.taught()
        return self.taught

    def _take_in(self, results: list[list[float]], cause: str) -> None:
        """Note loss and gradient norm of the steps just made, the last of which was left out if there is a `cause`."""
        state, model, optimizer = self.state, self.model, self.optimizer
        if cause:
            self.actions.emit(Skipped(state.step, cause, state.rollbacks))
            note_bad(state.step - 1, cause, state, model, optimizer)
            return
        for step, (loss, norm) in enumerate(results, state.step - len(results)):
            found = fault_in(loss, norm, state, model.vocab_size) if sees_late(self.machine) else ""
            if found and not (math.isfinite(loss) and math.isfinite(norm)):
                raise Fault(step + 1, found, [step])  # the weights have had it
            if found:
                note_bad(step, found, state, model, optimizer)
            else:
                note_sound(loss, state)
            state.tokens += self.batches.tokens_per_step
            state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1

    def _tell(self, result: list[float], factor: float) -> None:
        (loss, norm), state, clock = result, self.state, self.clock
        rate, speed = factor * self.settings.learning_rate, self.batches.tokens_per_step / clock.typical("step")
        left = clock.seconds_left(state.step)
        # JSON has no infinity.
        shown = norm if math.isfinite(norm) else None
        self.actions.emit(Step(state.step, loss, rate, state.tokens, speed, clock.elapsed(), left, shown))


def _is_unseen(state: TrainState, settings: TrainingSettings, actions: Actions, clock: Clock) -> bool:
    """Whether another step may follow before anything is told, evaluated or saved."""
    ends = (settings.log_every, settings.eval_every, settings.checkpoint_every)
    ended = any(state.step % end == 0 for end in ends) or state.step in state.passed_over
    ended = ended or clock.is_over(state.step) or ends_now(state, settings, clock)
    return not (ended or actions.stopped())


def _evaluation_is_due(state: TrainState, settings: TrainingSettings, ends: bool) -> bool:
    """Whether it is time for one, since the run or a generation `ends`, if for nothing else."""
    # An untrained model is not worth the time of a run that has only so many minutes.
    due = state.step % settings.eval_every == 0 and (state.step > 0 or not settings.minutes)
    return (due or ends) and state.evaluated_step != state.step


def _out_of_patience(state: TrainState, settings: TrainingSettings) -> bool:
    return 0 < settings.patience <= state.evaluations_since_best


def _evaluate(
    state: TrainState,
    settings: TrainingSettings,
    actions: Actions,
    clock: Clock,
    optimizer: Optimizers,
    ends: bool,
) -> bool:
    """Score the validation part and write a sample. Returns whether this is the best so far.

    Raises Fault if the score is no finite number. `state` changes last, so that an Interrupted leaves it as it was.
    """
    with optimizer.averaged():
        result = actions.evaluate()
    if not math.isfinite(result.loss):
        raise Fault(state.step, f"the validation loss is {result.loss}")
    training_loss = state.loss_sum / state.loss_count if state.loss_count else None
    # An untrained model is never the best one: a run that diverges at once must not be told to keep it.
    best = state.step > 0 and (state.best_loss is None or result.loss < state.best_loss)
    actions.emit(Evaluation(state.step, result.loss, result.bits_per_byte, training_loss, best, clock.elapsed()))
    every = settings.sample_every if settings.sample_every is not None else settings.eval_every
    if every and settings.sample_tokens and (state.step % every == 0 or ends):
        with optimizer.averaged():
            _sample(state.step, actions)
    if best:
        state.best_loss, state.best_step = result.loss, state.step
    state.evaluations_since_best = 0 if best else state.evaluations_since_best + (state.step > 0)
    state.evaluated_step, state.loss_sum, state.loss_count = state.step, 0.0, 0
    return best


def _sample(step: int, actions: Actions) -> None:
    try:
        sample = actions.sample(step)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        actions.emit(Notice(f"Memory ran out while a sample was written; training goes on. {ADVICE}"))
    else:
        actions.emit(sample)
