"""The one training loop, for every task."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from groundling.config import TrainingSettings
from groundling.data.batches import Batch
from groundling.evaluation.score import Interrupted, windows_at_once
from groundling.machine import Machine
from groundling.model.adapter import AdapterSpec
from groundling.model.compiled import compiled_forward
from groundling.model.initial import InitialModel
from groundling.parallel.mesh import Mesh
from groundling.parallel.processes import agree, on_main
from groundling.training import events, out_of_memory
from groundling.training.checkpoints import Checkpoints
from groundling.training.clock import Clock
from groundling.training.compiling import choose_forward
from groundling.training.divergence import MAX_ROLLBACKS, Anomaly, DivergedError
from groundling.training.events import Event, Subscriber
from groundling.training.learner import Learner
from groundling.training.out_of_memory import ADVICE, HalfDoneError, OutOfMemoryError, is_out_of_memory, retrying
from groundling.training.saver import Saver
from groundling.training.schedule import rate_factor
from groundling.training.state import TrainState
from groundling.training.step import micro_batches
from groundling.training.task import Score, Task


class Trainer:
    """Trains a model on a task. It owns everything that changes: `learner` has the tensors, `state` the numbers.

    Call `resume` to start from a checkpoint, then `compile`, then `run`. Events go to the `subscribers`.

    With several processes, each has a trainer, and all make the same decisions: `mesh` says which rows are its own.
    """

    def __init__(
        self, initial: InitialModel, task: Task, settings: TrainingSettings, machine: Machine, checkpoints: Checkpoints,
        adapter: AdapterSpec | None = None, mesh: Mesh | None = None,
    ) -> None:  # fmt: skip
        self.task, self.settings, self.machine, self.checkpoints = task, settings, machine, checkpoints
        self.mesh = task.mesh = mesh or Mesh.single()
        self.learner = Learner(initial, task, settings, machine, adapter, self.mesh)
        # With a time budget, saves are waited for: the end must know how long one takes.
        self.saver = Saver(checkpoints, self.mesh, lambda *which: self.emit(events.Saved(*which)), not settings.minutes)
        self.state = TrainState()
        self.clock = Clock(0.0, settings)
        self.asked_to_stop: Callable[[], bool] = lambda: False  # of this process; `stopped`: of any, asked by all
        self.stopped = lambda: agree(self.asked_to_stop())
        self.subscribers: list[Subscriber] = []
        largest = windows_at_once(initial.config.block_size, initial.vocab_size)
        self.evaluation_batch = min(largest, machine.evaluation_batch or largest)

    def emit(self, event: Event) -> None:
        for subscriber in self.subscribers:
            subscriber(event)

    def resume(self, checkpoint: Path, text_since: int = 0, extended_at: int | None = None) -> None:
        """Continue from a checkpoint. At step `text_since` the run got its current text, and at step `extended_at` its
        current end. Raises ValueError if the checkpoint does not fit."""
        self.state = self.learner.load(checkpoint)
        self.state.note_changes(text_since, extended_at)

    def run(self, stopped: Callable[[], bool] = lambda: False, before: float = 0.0) -> bool:
        """Train to the end and return True, or until `stopped()` and return False. Either way everything is saved.

        `before` is the time in seconds that this session has already used. Raises DivergedError if every rollback
        failed, and OutOfMemoryError if nothing more can be made smaller.
        """
        self.asked_to_stop, self.clock = stopped, Clock(self.state.elapsed + before, self.settings)
        self.task.stopped = lambda: stopped() and not self.machine.runs_ahead  # there, steps are recorded later
        with self.machine.own_randomness():  # dropout is seeded in every step; the caller's random state is kept
            while True:
                try:
                    return self._train()
                except Anomaly as anomaly:
                    self._roll_back(anomaly)
                    continue
                except Exception as error:
                    if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
                        raise
                    undo = self.mesh.size == 1 and (isinstance(error, HalfDoneError) or self.machine.runs_ahead)
                if undo:  # the error is freed by now, and with it the memory that the failed pass had used
                    self._restore()
                self._shrink("in a training step", went_back=undo)

    def _train(self) -> bool:
        """Evaluate, save and make steps, until the end or a stop. Raises Anomaly, or an out-of-memory error."""
        state, over = self.state, False
        while True:
            self.saver.poll()
            over = over or self.clock.is_over(state.step)  # remembered, since the evaluation below takes time
            ends, improved = over or self._stage_is_over(), False
            if self._evaluation_is_due(ends):
                with suppress(Interrupted):  # the evaluation happens after a resume
                    improved = self._evaluate(ends)
            over = over or 0 < self.settings.patience <= state.evaluations_since_best
            ends = (ends or over) and state.evaluated_step == state.step
            scheduled = improved or ends or (state.step > 0 and state.step % self.settings.checkpoint_every == 0)
            if saved := scheduled or self.stopped():
                self._save(scheduled)
            if (over and ends) or (saved and self.stopped()):
                self.saver.wait()
                return over and ends
            if ends:
                self._next_stage()
            if state.step in state.guard.skipped_steps:
                state.step += 1
            else:
                try:
                    self._learn()
                except Interrupted:  # the weights did not change, and are saved
                    self.learner.zero_grad()

    def _stage_is_over(self) -> bool:
        """Whether the stage ends and another follows."""
        end = self.task.stages[self.state.stage - 1]
        return end < 1 and self.state.step > self.state.stage_step and self.clock.is_over(self.state.step, end)

    def _next_stage(self) -> None:
        state = self.state
        state.stage, state.stage_step, state.stage_elapsed = state.stage + 1, state.step, self.clock.elapsed()
        state.guard.new_stage()
        self.emit(self.learner.next_stage(state.stage, state.step))

    def _learn(self) -> None:
        """Make one optimizer step and log it if it is time. On a GPU, make all steps until the next log line."""
        results: list[dict[str, torch.Tensor]] = []
        state = self.state
        with self.clock.timing("step") as timing:
            while not results or (self.machine.runs_ahead and self._may_run_ahead()):
                progress = self.clock.stage_progress(state, self.task.stages[state.stage - 1])
                factor = state.guard.lr_scale * rate_factor(progress, self.settings)
                self.learner.optimizer.schedule(factor)
                batch = self.task.batch(state.step, self.learner.model)
                figures, cause = self._step(batch, interruptible=not results)
                results.append(figures)
                state.step += 1
            losses = torch.stack([torch.stack([r["loss"], r["grad_norm"]]) for r in results]).tolist()
            last = dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))
            timing.times = len(results)  # a GPU was waited for here, and nowhere before
        for step, (loss, norm) in enumerate(losses, state.step - len(results)):
            applied = self._record(step, batch.tokens.numel(), loss, norm, cause)
        if applied and (state.step % self.settings.log_every == 0 or state.step == self.settings.steps):
            self._log({**last, **batch.figures}, factor, batch.tokens.numel())

    def _step(self, batch: Batch, interruptible: bool) -> tuple[dict[str, torch.Tensor], str]:
        """One optimizer step, all or nothing. Returns its figures, still on the device, and the cause if it was
        skipped. Raises Interrupted before anything changes."""
        state, settings, machine = self.state, self.settings, self.machine
        scale = state.scaler.loss_scale if machine.dtype == torch.float16 else 1.0
        stopped = self.stopped if interruptible else lambda: False
        when = (settings.seed, state.step, stopped)
        parts = micro_batches(batch, settings.accumulate, self.task.weight, *when, self.mesh)
        figures = self.learner.gradients(parts, settings.accumulate, machine, scale)
        cause, in_range, found_inf = "", True, None
        if self.machine.runs_ahead:
            found_inf = 1 - (figures["loss"] + figures["grad_norm"]).isfinite().float()  # the device skips the step
        else:
            loss, norm = float(figures["loss"]), float(figures["grad_norm"])
            in_range = math.isfinite(norm)
            # Gradients that overflow only because of the scale say nothing about the model.
            cause = state.guard.find_anomaly(loss, 0.0 if scale > 1 else norm, self.task.chance)
        if in_range and not cause and batch.learns:
            self.learner.apply(state.step - state.stage_step, found_inf)
        self.learner.zero_grad()
        if machine.dtype == torch.float16 and not cause and batch.learns:
            state.scaler.update(in_range)
        return figures, cause

    def _record(self, step: int, tokens: int, loss: float, norm: float, cause: str) -> bool:
        """Record the result of the step that follows `step` others. Returns whether it changed the weights."""
        state, guard, skipped = self.state, self.state.guard, cause != ""
        if self.machine.runs_ahead:
            cause, skipped = guard.find_anomaly(loss, norm, self.task.chance), not math.isfinite(loss + norm)
        if skipped:
            self.emit(events.Skipped(step + 1, cause, guard.rollbacks))
        else:
            state.tokens += tokens
            state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
        if cause:
            self.learner.check_finite(step + 1)
            guard.note_bad(step, cause)
        else:
            guard.note_good(loss)
        return not skipped

    def _may_run_ahead(self) -> bool:
        """Whether another step may follow before anything is logged, evaluated or saved."""
        step, settings = self.state.step, self.settings
        due = any(step % every == 0 for every in (settings.log_every, settings.eval_every, settings.checkpoint_every))
        due = due or step in self.state.guard.skipped_steps
        return not (due or self.clock.is_over(step) or self._stage_is_over() or self.stopped())

    def _log(self, figures: dict[str, float], factor: float, tokens: int) -> None:
        state, clock, norm = self.state, self.clock, figures.pop("grad_norm")
        self.emit(events.Step(
            state.step, figures.pop("loss"), factor * self.settings.learning_rate, state.tokens,
            tokens / clock.typical("step"), clock.elapsed(), clock.seconds_left(state.step),
            norm if math.isfinite(norm) else None, figures,  # JSON has no infinity
        ))  # fmt: skip

    # --- evaluation

    def _evaluation_is_due(self, ends: bool) -> bool:
        """Whether it is time for one. The end of the run or of a stage always has one."""
        state, settings = self.state, self.settings
        # An untrained model is not worth the time of a run that has only so many minutes.
        due = state.step % settings.eval_every == 0 and (state.step > 0 or not settings.minutes)
        return (due or ends) and state.evaluated_step != state.step

    def _evaluate(self, ends: bool) -> bool:
        """Score the model and write a sample. Returns whether it is the best so far.

        Raises Anomaly if the score is not finite. The state changes last, so that an Interrupted leaves it as it was.
        """
        state, settings = self.state, self.settings
        with self.clock.timing("evaluation"), self.learner.average.applied():
            score = retrying(self._score, self._shrink_evaluation)
            if not math.isfinite(score.value):
                raise Anomaly(state.step, f"the validation loss is {score.value}")
            training_loss = state.loss_sum / state.loss_count if state.loss_count else None
            # An untrained model is never the best one: a run that diverges at once must not be told to keep it.
            best = state.step > 0 and score.beats(state.best_score)
            place = (state.step, score.value, score.bits_per_byte, training_loss, best, self.clock.elapsed())
            self.emit(events.Evaluation(*place, dict(score.figures), score.name))
            every = settings.sample_every if settings.sample_every is not None else settings.eval_every
            if every and settings.sample_tokens and (state.step % every == 0 or ends):
                self._sample()
        if best:
            state.best_score, state.best_step = score.value, state.step
        state.evaluations_since_best = 0 if best else state.evaluations_since_best + (state.step > 0)
        state.evaluated_step, state.loss_sum, state.loss_count = state.step, 0.0, 0
        return best

    def _score(self) -> Score:
        return self.task.evaluate(self.learner.model, self.machine, self.evaluation_batch, self.stopped)

    def _shrink_evaluation(self) -> None:
        if self.evaluation_batch == 1:
            raise OutOfMemoryError(f"Memory ran out in an evaluation, with a single window of text. {ADVICE}")
        self.evaluation_batch //= 2
        self._free_memory("in an evaluation")

    def _sample(self) -> None:
        sample, interrupted = None, False
        with self.learner.parallel.unsharded(self.learner.model) as model:
            try:
                sample = self.task.sample(model, self.state.step, self.asked_to_stop) if model else None
            except Interrupted:
                interrupted = True
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                sample = events.Notice(f"Memory ran out while writing a sample. Training continues. {ADVICE}")
        if agree(interrupted):
            raise Interrupted
        if sample is not None:
            self.emit(sample)

    # --- checkpoints and rollbacks

    def _save(self, scheduled: bool) -> None:
        """Save a checkpoint. `scheduled` is False if it exists only because the run was stopped."""
        state = self.state
        self.learner.check_finite(state.step)
        if scheduled and not state.guard.bad_steps:
            state.guard.last_good_step = state.step
        state.elapsed = self.clock.elapsed()
        failed = OutOfMemoryError(f"Memory ran out while saving step {state.step:,}. {ADVICE}")
        with self.clock.timing("save"), out_of_memory.raised_as(failed):
            self.saver.save(lambda: self.learner.snapshot(state), self.settings.keep_checkpoints)

    def _roll_back(self, anomaly: Anomaly) -> None:
        """Go back, and continue at a lower learning rate. Raises DivergedError after too many rollbacks."""
        self.learner.zero_grad()
        before = self.state.guard
        if before.rollbacks >= MAX_ROLLBACKS:
            self.emit(events.Diverged(anomaly.step, anomaly.cause))
            raise DivergedError(anomaly, self.settings, self.machine)
        self._restore()
        state = self.state
        state.guard.roll_back(before, anomaly)
        place = (anomaly.step, state.step, state.evaluated_step)
        self.emit(events.RolledBack(*place, anomaly.cause, state.guard.lr_scale, before.rollbacks))

    def _restore(self) -> None:
        """Load the last good checkpoint that is undamaged, or go back to the start.

        Later checkpoints are deleted, since their steps will be repeated differently. Checkpoints that exist only
        because the run was stopped are not used, so that a stopped run goes back as far as any other.
        """
        self.saver.wait()
        last_good = self.state.guard.last_good_step
        checkpoint = on_main(lambda: self.checkpoints.go_back(last_good))
        self.state = self.learner.load(checkpoint) if checkpoint else self.learner.reset()

    # --- compiler and memory

    def compile(self) -> None:
        """Decide whether to compile the model, and put the decision into `machine`. Adapters are never compiled."""
        retrying(self._compile, lambda: self._shrink("in the first pass"))

    def _compile(self) -> None:
        machine = self.machine
        self.task.place(dataclasses.replace(machine, compile="off"))  # some tasks write their batches with it
        choice = choose_forward(self.learner, self.settings, machine, self.state.step)
        if machine.compile == "on" and not choice.compiled and choice.reason:
            self.emit(events.Notice(f"Training is not compiled: {choice.reason}."))
        reasons = (*machine.reasons, choice.reason) if choice.reason else machine.reasons
        self.machine = dataclasses.replace(machine, compile="on" if choice.compiled else "off", reasons=reasons)
        self.learner.forward = choice.forward
        self.task.place(self.machine)

    def _shrink(self, doing: str, went_back: bool = False) -> None:
        """Use micro-batches of half the size from now on: the same step in about half the memory.

        Raises OutOfMemoryError if a micro-batch has only one window already.
        """
        smaller = out_of_memory.halved(self.settings, self.mesh.data)
        if smaller is None:
            raise OutOfMemoryError(f"Memory ran out {doing}, with a single window of text. {ADVICE}")
        self.settings = smaller
        self.learner.zero_grad()
        self._free_memory(doing, went_back)
        if self.machine.compile == "on":
            self.learner.forward = compiled_forward(self.learner.model, self.machine, smaller.accumulate == 1)

    def _free_memory(self, doing: str, went_back: bool = False) -> None:
        """What a smaller part then uses. Several processes start again for that: the others are at another place."""
        gc.collect()
        if self.machine.device.type == "cuda":
            torch.cuda.empty_cache()
        state, settings = self.state, self.settings
        self.emit(events.OutOfMemory(
            state.step, state.evaluated_step, doing, settings.batch_size, settings.accumulate, self.evaluation_batch,
            state.guard.rollbacks, went_back,
        ))  # fmt: skip
        if self.mesh.size > 1:
            self.saver.wait()
            raise out_of_memory.StartAgain(doing)
