"""Divergences between the predictions of a student and a teacher, for distillation.

All take logits (..., V) of both, which are divided by a temperature, and return nats (...), one number a token. The
gradient reaches only the student. It gets smaller by the square of the temperature, so all are multiplied by that
(Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from groundling.config.methods import DistillSettings


def divergence(student: torch.Tensor, teacher: torch.Tensor, settings: DistillSettings) -> torch.Tensor:
    """The divergence that the settings name."""
    match settings.divergence:
        case "forward":
            return forward_kl(student, teacher, settings.temperature)
        case "reverse":
            return reverse_kl(student, teacher, settings.temperature)
    return jensen_shannon(student, teacher, settings.beta, settings.temperature)


def forward_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher, student): the student must cover all that the teacher finds likely."""
    q, p = _logprobs(student, teacher, temperature)
    return temperature**2 * _kl(p, q)


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(student, teacher): the student may pick what it models best of that (Gu et al., "MiniLLM", 2023)."""
    q, p = _logprobs(student, teacher, temperature)
    return temperature**2 * _kl(q, p)


def jensen_shannon(student: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float = 1.0) -> torch.Tensor:
    """beta KL(teacher, m) + (1 - beta) KL(student, m) for m = beta teacher + (1 - beta) student, with 0 < beta < 1
    (Agarwal et al., "On-Policy Distillation of Language Models", 2023). It goes to 0 at both ends of beta."""
    q, p = _logprobs(student, teacher, temperature)
    m = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return temperature**2 * (beta * _kl(p, m) + (1 - beta) * _kl(q, m))


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The cross-entropy with the teacher's probabilities as targets: `forward_kl` plus the teacher's entropy, so the
    gradient is the same."""
    q, p = _logprobs(student, teacher, temperature)
    return temperature**2 * -(p.exp() * q).sum(-1)


def _logprobs(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = student.float() / temperature, teacher.detach().float() / temperature
    return F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p, q) from log-probabilities."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
