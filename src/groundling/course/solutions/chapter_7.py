"""Our answers to the exercises of chapter 7."""

from __future__ import annotations

import math
import statistics

import torch
import torch.nn.functional as F


def steps_in_budget(budget: float, timings: list[float]) -> int:
    return max(1, int(budget / statistics.median(timings)))


def paired_gain(before: list[float], after: list[float]) -> tuple[float, float]:
    gains = [b - a for b, a in zip(before, after, strict=True)]
    return statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains))


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher.detach(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
