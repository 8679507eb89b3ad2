"""Wrong answers to the exercises of chapter 4."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from wrong import wrong


def _windows(ids: torch.Tensor, starts: torch.Tensor, n: int) -> torch.Tensor:
    return ids[starts[:, None] + torch.arange(n)]


@wrong("get_batch", "y is x itself")
def targets_not_shifted(ids: torch.Tensor, block_size: int, batch_size: int, generator: torch.Generator) -> Any:
    x = _windows(ids, torch.randint(len(ids) - block_size, (batch_size,), generator=generator), block_size)
    return x, x


@wrong("get_batch", "The last token of the text is never a target")
def last_token_left_out(ids: torch.Tensor, block_size: int, batch_size: int, generator: torch.Generator) -> Any:
    both = _windows(ids, torch.randint(len(ids) - block_size - 1, (batch_size,), generator=generator), block_size + 1)
    return both[:, :-1], both[:, 1:]


@wrong("get_batch", "also at the end")
def rolled_targets(ids: torch.Tensor, block_size: int, batch_size: int, generator: torch.Generator) -> Any:
    x = _windows(ids, torch.randint(len(ids) - block_size, (batch_size,), generator=generator), block_size)
    return x, x.roll(-1, 1)


@wrong("get_batch", "The same generator should give the same windows")
def generator_not_used(ids: torch.Tensor, block_size: int, batch_size: int, generator: torch.Generator) -> Any:
    both = _windows(ids, torch.randint(len(ids) - block_size, (batch_size,)), block_size + 1)
    return both[:, :-1], both[:, 1:]


@wrong("clip_gradients", "Each gradient was cut alone")
def each_clipped_alone(parameters: Iterable[torch.nn.Parameter], most: float) -> float:
    norms = []
    for p in parameters:
        if p.grad is not None:
            norms.append(float(p.grad.norm()))
            p.grad.mul_(min(1.0, most / norms[-1]))
    return math.hypot(*norms)


@wrong("clip_gradients", "It should stay as it is")
def always_scaled(parameters: Iterable[torch.nn.Parameter], most: float) -> float:
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = math.hypot(*(float(g.norm()) for g in gradients))
    for g in gradients:
        g.mul_(most / norm)
    return norm


@wrong("clip_gradients", "The gradients did not change")
def clipped_a_copy(parameters: Iterable[torch.nn.Parameter], most: float) -> float:
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = math.hypot(*(float(g.norm()) for g in gradients))
    for g in gradients:
        g = g * min(1.0, most / norm)
    return norm


@wrong("clip_gradients", "Return the norm before clipping")
def norm_after(parameters: Iterable[torch.nn.Parameter], most: float) -> float:
    return min(most, float(torch.nn.utils.clip_grad_norm_(parameters, most)))


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


@wrong("learning_rate", "There is no warm-up")
def without_warmup(step: int, n_steps: int, warmup: int, peak: float, final: float) -> float:
    return final + (peak - final) * _cosine(step / n_steps)


@wrong("learning_rate", "It should fall to `final`")
def down_to_zero(step: int, n_steps: int, warmup: int, peak: float, final: float) -> float:
    return peak * (step / warmup if step < warmup else _cosine((step - warmup) / (n_steps - warmup)))


@wrong("learning_rate", "The cosine begins where the warm-up ends")
def cosine_from_the_start(step: int, n_steps: int, warmup: int, peak: float, final: float) -> float:
    return peak * step / warmup if step < warmup else final + (peak - final) * _cosine(step / n_steps)


@wrong("learning_rate", "The rate is the same at all steps")
def never_applied(step: int, n_steps: int, warmup: int, peak: float, final: float) -> float:
    return peak


def _pieces(ids: torch.Tensor, block_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(ids) - 1, block_size):
        window = ids[start : start + block_size + 1]
        yield window[None, :-1], window[1:]


@wrong("validation_loss", "The model was in training mode")
@torch.no_grad()
def without_eval(model: torch.nn.Module, ids: torch.Tensor, block_size: int) -> float:
    losses = [F.cross_entropy(model(x)[0], y, reduction="sum") for x, y in _pieces(ids, block_size)]
    return float(sum(losses)) / (len(ids) - 1)


@wrong("validation_loss", "The windows must be fixed")
@torch.no_grad()
def one_random_batch(model: torch.nn.Module, ids: torch.Tensor, block_size: int) -> float:
    model.eval()
    windows = _windows(ids, torch.randint(len(ids) - block_size, (16,)), block_size + 1)
    loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    model.train()
    return float(loss)


@wrong("validation_loss", "All tokens count the same")
@torch.no_grad()
def mean_of_means(model: torch.nn.Module, ids: torch.Tensor, block_size: int) -> float:
    model.eval()
    losses = [float(F.cross_entropy(model(x)[0], y)) for x, y in _pieces(ids, block_size)]
    model.train()
    return sum(losses) / len(losses)


@wrong("validation_loss", "left in evaluation mode")
@torch.no_grad()
def stays_in_eval(model: torch.nn.Module, ids: torch.Tensor, block_size: int) -> float:
    losses = [F.cross_entropy(model.eval()(x)[0], y, reduction="sum") for x, y in _pieces(ids, block_size)]
    return float(sum(losses)) / (len(ids) - 1)


@wrong("validation_loss", "were predicted. Each should be, once")
@torch.no_grad()
def short_window_left_out(model: torch.nn.Module, ids: torch.Tensor, block_size: int) -> float:
    model.eval()
    whole = [pair for pair in _pieces(ids, block_size) if len(pair[1]) == block_size]
    losses = [float(F.cross_entropy(model(x)[0], y)) for x, y in whole]
    model.train()
    return sum(losses) / len(losses)
