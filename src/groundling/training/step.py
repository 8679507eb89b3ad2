"""One optimizer step, which changes all or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from groundling.config import TrainingSettings
from groundling.data.batches import Batches
from groundling.evaluation.score import Interrupted
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.training.checkpoints import TrainState
from groundling.training.divergence import fault_in
from groundling.training.objective import Objective
from groundling.training.optimizer import Optimizers
from groundling.training.out_of_memory import HalfDoneError, is_out_of_memory

_STEPS_BEFORE_SCALING_UP = 1000

Forward = Callable[..., torch.Tensor]


def train_step(
    forward: Forward,
    model: GPT,
    objective: Objective,
    batches: Batches,
    optimizer: Optimizers,
    state: TrainState,
    settings: TrainingSettings,
    machine: Machine,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[torch.Tensor, str]:
    """One optimizer step. Returns the loss (nats a token) and the gradient's norm, (2,), on the machine's device, and
    why the step was left out, with all weights as they were, if it was: see rescue.py, but also `sees_late`.

    In float16 small gradients would vanish: the loss is scaled up before they are computed, and they are scaled down
    after (Micikevicius et al., "Mixed Precision Training", 2018). Where they leave the range, the step is left out and
    the scale halved, which is no fault; its norm is then infinite or not a number.

    Raises Interrupted between two passes, with nothing changed, once `stopped()` says so.
    """
    model.train()
    scale = state.loss_scale if machine.dtype == torch.float16 else 1.0
    total = torch.zeros((), device=machine.device)
    for micro_step in range(settings.accumulate):
        if micro_step and stopped():
            optimizer.zero_grad()
            raise Interrupted
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
    cause, in_range = "", True
    if not sees_late(machine):
        value, length = outcome.tolist()
        in_range = math.isfinite(length)
        cause = fault_in(value, length if scale <= 1.0 else 0.0, state, model.vocab_size)
    if in_range and not cause:
        try:
            optimizer.step(state.step - state.born)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise HalfDoneError from None
    optimizer.zero_grad()
    if scale != 1.0 and not cause:
        _rescale(state, in_range)
    return outcome, cause


def sees_late(machine: Machine) -> bool:
    """Whether several steps are started before the results of the first are looked at: a look would make a GPU wait
    for Python and Python for the GPU. (float16 looks at each, to set its scale.) Nothing is saved unseen."""
    return machine.device.type == "cuda" and machine.dtype != torch.float16


def _rescale(state: TrainState, in_range: bool) -> None:
    state.steps_in_range = state.steps_in_range + 1 if in_range else 0
    if not in_range:
        state.loss_scale = max(state.loss_scale / 2, 1.0)
    elif state.steps_in_range % _STEPS_BEFORE_SCALING_UP == 0:
        state.loss_scale *= 2


def _dropout_seed(seed: int, step: int, micro_step: int) -> int:
    words = np.random.SeedSequence([seed, step, micro_step]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
