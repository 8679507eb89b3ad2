"""What is done about a loss, a gradient or a weight that is no finite number, and about a loss that leaps up.

A step whose loss or gradient is at fault is left out: weights and optimizer stay as they are, and the next step reads
what comes next in the text. Three such steps in a row, or a weight or a moment of the optimizer that is no finite
number, lead back to the last whole checkpoint that was not at fault (or to the start), from where it goes on at half of
the learning rates and without those three steps' text; PaLM was led past its spikes like that (Chowdhery et al., 2022,
section 5.1). After three times it ends, and says why.

All that decides stands in the `TrainState`, so that a run that was stopped goes the same way to the bit.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch

from groundling import storage
from groundling.config import TrainingSettings
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.training.checkpoints import Checkpoints, TrainState, load_training, read_state
from groundling.training.events import Event, RolledBack
from groundling.training.optimizer import Optimizers

_REMEMBERED = 64  # losses that the usual one is the median of
_FEWEST = 16  # of them, before which no loss is called a spike
_SPIKE = 5  # times the usual loss, and ...
_BEYOND_CHANCE = 3  # times what guessing gives; docs/diagnosis.md has how far healthy runs stay below
_BAD_STEPS = 3  # in a row
_ROLLBACKS = 3
_SLOWER = 0.5  # what each leaves of the learning rates


class Fault(Exception):
    """Training cannot go on from here: `cause` says what was wrong when `step` was done. `blamed` are the steps whose
    text is left out from now on, each as the number of steps before it."""

    def __init__(self, step: int, cause: str, blamed: Sequence[int] = ()) -> None:
        super().__init__(cause)
        self.step, self.cause, self.blamed = step, cause, blamed


class DivergedError(FloatingPointError):
    """Training does not come beyond `step`, for what `cause` says, whatever was tried."""

    def __init__(self, fault: Fault, settings: TrainingSettings, machine: Machine) -> None:
        helps = [f"--learning-rate {settings.learning_rate / 10:.1g}"]
        if settings.optimizer == "muon":
            helps[0] += f" and --matrix-learning-rate {settings.matrix_learning_rate / 10:.1g}"
        if not settings.grad_clip:
            helps.append("--grad-clip 1")
        if machine.dtype == torch.float16:
            helps.append("--dtype float32")
        super().__init__(
            f"Training diverged: in step {fault.step} {fault.cause}, after {_ROLLBACKS} roll-backs, each with half of "
            f"the learning rates. Most likely they are still too high: start again with {', '.join(helps)} or a longer "
            "--warmup-steps. Checkpoints are as they were."
        )
        self.step, self.cause = fault.step, fault.cause


def fault_in(loss: float, norm: float, state: TrainState, vocab_size: int) -> str:
    """What is wrong with a step's loss (nats a token) or its gradient's norm, in words; nothing if all is well.

    A loss is a spike if it is above five times the median of the last 64, and above three times what guessing among
    all tokens gives. The latter, since text of a rare kind costs a model that knows the rest by heart a thousand times
    the usual loss, and is worth learning; but it costs less than twice what guessing does.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient's norm is {norm}"
    if len(state.recent_losses) >= _FEWEST:
        usual = statistics.median(state.recent_losses)
        if loss > max(_SPIKE * usual, _BEYOND_CHANCE * math.log(vocab_size)):
            return f"the loss is {loss:.3g}, {loss / usual:.0f} times the usual {usual:.3g}"
    return ""


def note_sound(loss: float, state: TrainState) -> None:
    """A step that was well: its loss is among the usual ones from now on."""
    state.recent_losses = [*state.recent_losses[1 - _REMEMBERED :], loss]
    state.bad_steps = []


def note_bad(step: int, cause: str, state: TrainState, model: GPT, optimizer: Optimizers) -> None:
    """A step that was left out (`step` of them were before it). Raises Fault if that will not do."""
    state.bad_steps = [*state.bad_steps, step]
    check_finite(step + 1, model, optimizer)
    if len(state.bad_steps) >= _BAD_STEPS:
        raise Fault(step + 1, f"{cause}, as in the {_BAD_STEPS - 1} steps before", state.bad_steps)


def check_finite(step: int, model: GPT, optimizer: Optimizers) -> None:
    """Raises Fault, naming it, if a weight or something of the optimizer's state is no finite number."""
    # The optimizer first: it spoils the weights, and they do not spoil it.
    for name, parameter in model.named_parameters():
        for quantity, tensor in optimizer.state_of(parameter).items():
            if not tensor.isfinite().all():
                raise Fault(step, f"the optimizer's {quantity} of {name} is not all finite numbers")
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise Fault(step, f"the weights {name} are not all finite numbers")


def restore(
    checkpoints: Checkpoints, state: TrainState, model: GPT, optimizer: Optimizers,
    beginning: Callable[[], Mapping[str, torch.Tensor]],
) -> TrainState:  # fmt: skip
    """Fill model and optimizer from the checkpoint of `state.sound_step`, from one before it if that is damaged, or
    else with the weights of the `beginning`. Returns where training stood then.

    Later checkpoints are deleted: their steps are made again in another way. Those that stand there because somebody
    stopped the run are passed over, so that a run that was stopped goes back as far as one that was not.
    """
    optimizer.forget()
    for step in reversed(checkpoints.steps()):
        path = checkpoints.path(step)
        try:
            checkpoints.verify(path)
            if step <= state.sound_step and not read_state(path).bad_steps:
                return load_training(path, model, optimizer)
        except ValueError:
            pass  # damaged
        storage.remove_folder(path)
    model.load_state_dict(beginning())
    return TrainState()


def roll_back(
    fault: Fault, state: TrainState, settings: TrainingSettings, machine: Machine,
    restore: Callable[[], TrainState], emit: Callable[[Event], None],
) -> None:  # fmt: skip
    """Go back, and on at lower learning rates. Raises DivergedError if that was done often enough."""
    if state.rollbacks >= _ROLLBACKS:
        raise DivergedError(fault, settings, machine)
    restored = restore()
    restored.rollbacks, restored.rate_share = state.rollbacks + 1, _SLOWER * state.rate_share
    restored.passed_over = sorted({*state.passed_over, *fault.blamed})
    event = RolledBack(
        fault.step, restored.step, restored.evaluated_step, fault.cause, restored.rate_share, state.rollbacks
    )
    vars(state).update(vars(restored))
    emit(event)
