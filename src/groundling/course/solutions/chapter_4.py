"""Our answers to the exercises of chapter 4."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F


def get_batch(
    ids: torch.Tensor, block_size: int, batch_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(ids) - block_size, (batch_size,), generator=generator)
    windows = ids[starts[:, None] + torch.arange(block_size + 1)]
    return windows[:, :-1], windows[:, 1:]


def clip_gradients(parameters: Iterable[torch.nn.Parameter], most: float) -> float:
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    for gradient in gradients:
        gradient.mul_(most / max(norm, most))
    return norm


def learning_rate(step: int, n_steps: int, warmup: int, peak: float, final: float) -> float:
    if step < warmup:
        return peak * step / warmup
    after = (step - warmup) / (n_steps - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * after))


@torch.no_grad()
def validation_loss(model: torch.nn.Module, ids: torch.Tensor, block_size: int) -> float:
    model.eval()
    total = 0.0
    for start in range(0, len(ids) - 1, block_size):
        window = ids[start : start + block_size + 1]
        total += float(F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum"))
    model.train()
    return total / (len(ids) - 1)
