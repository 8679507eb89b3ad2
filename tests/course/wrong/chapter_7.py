"""Wrong answers to the exercises of chapter 7."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
import torch.nn.functional as F

from wrong import wrong


@wrong("steps_in_budget", "that is the mean")
def by_the_mean(budget: float, timings: list[float]) -> int:
    return max(1, int(budget / statistics.mean(timings)))


@wrong("steps_in_budget", "That is the time of the first step")
def by_the_first(budget: float, timings: list[float]) -> int:
    return max(1, int(budget / timings[0]))


@wrong("steps_in_budget", "Only whole steps that fit count")
def rounded_up(budget: float, timings: list[float]) -> int:
    return math.ceil(budget / statistics.median(timings))


@wrong("steps_in_budget", "at least 1 step")
def none_at_all(budget: float, timings: list[float]) -> int:
    return int(budget // statistics.median(timings))


@wrong("paired_gain", "That is the error of two separate means")
def unpaired(before: list[float], after: list[float]) -> tuple[float, float]:
    error = math.sqrt((statistics.variance(before) + statistics.variance(after)) / len(before))
    return statistics.mean(before) - statistics.mean(after), error


@wrong("paired_gain", "how much one window varies")
def spread_of_one(before: list[float], after: list[float]) -> tuple[float, float]:
    gains = [b - a for b, a in zip(before, after, strict=True)]
    return statistics.mean(gains), statistics.stdev(gains)


@wrong("paired_gain", "before minus after")
def the_other_way_round(before: list[float], after: list[float]) -> tuple[float, float]:
    gains = [a - b for b, a in zip(before, after, strict=True)]
    return statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains))


@wrong("paired_gain", "by n - 1")
def of_a_whole_population(before: list[float], after: list[float]) -> tuple[float, float]:
    gains = [b - a for b, a in zip(before, after, strict=True)]
    return statistics.mean(gains), statistics.pstdev(gains) / math.sqrt(len(gains))


@wrong("distillation_loss", "That is KL(student, teacher)")
def wrong_way_round(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher.detach(), -1)
    return (log_q.exp() * (log_q - log_p)).sum(-1).mean()


@wrong("distillation_loss", "A gradient reaches the teacher")
def teacher_learns(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@wrong("distillation_loss", "Subtract the teacher's own entropy")
def cross_entropy_alone(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(student.flatten(0, 1), teacher.detach().softmax(-1).flatten(0, 1))


@wrong("distillation_loss", "Take their mean")
def summed(student: torch.Tensor, teacher: torch.Tensor) -> Any:
    return F.kl_div(F.log_softmax(student, -1), teacher.detach().softmax(-1), reduction="sum")


@wrong("distillation_loss", "Sum over the vocabulary")
def mean_over_all(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher.detach(), -1)
    return (log_p.exp() * (log_p - log_q)).mean()
