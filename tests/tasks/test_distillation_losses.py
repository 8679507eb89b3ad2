"""Divergences between a student and a teacher: identities, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from groundling.config.methods import DistillSettings
from groundling.tasks.losses.divergence import divergence, forward_kl, jensen_shannon, reverse_kl, soft_cross_entropy
from groundling.tasks.losses.logprobs import entropy

KINDS: dict[str, Any] = {"forward": {}, "reverse": {}, "jsd": {"beta": 0.3}}
each_kind = pytest.mark.parametrize("kind", KINDS)


def loss(kind: str, temperature: float = 1.0) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    settings = DistillSettings(divergence=kind, temperature=temperature, **KINDS[kind])  # type: ignore[arg-type]
    return lambda student, teacher: divergence(student, teacher, settings)


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return student, teacher


def test_the_values_are_those_of_the_definitions(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teacher = logits
    q, p = Categorical(logits=student / 2), Categorical(logits=teacher / 2)
    m = Categorical(probs=0.3 * p.probs + 0.7 * q.probs)
    torch.testing.assert_close(forward_kl(student, teacher, 2.0), 4 * kl_divergence(p, q))
    torch.testing.assert_close(reverse_kl(student, teacher, 2.0), 4 * kl_divergence(q, p))
    expected = 4 * (0.3 * kl_divergence(p, m) + 0.7 * kl_divergence(q, m))
    torch.testing.assert_close(jensen_shannon(student, teacher, 0.3, 2.0), expected)
    torch.testing.assert_close(jensen_shannon(student, teacher, 0.5), jensen_shannon(teacher, student, 0.5))
    torch.testing.assert_close(jensen_shannon(student, teacher, 0.3), jensen_shannon(teacher, student, 0.7))
    assert bool((jensen_shannon(student, teacher, 1e-6) < 1e-4).all())


@each_kind
def test_a_model_learns_nothing_from_itself(kind: str, logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student = logits[0].requires_grad_()
    value = loss(kind, 2.0)(student, student)
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros(3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-6, rtol=0)


def test_soft_cross_entropy_is_the_forward_divergence_and_the_teachers_entropy(
    logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    student, teacher = logits[0].requires_grad_(), logits[1]
    soft = soft_cross_entropy(student, teacher)
    torch.testing.assert_close(soft, forward_kl(student, teacher) + entropy(teacher))
    expected = F.cross_entropy(student.flatten(0, 1), teacher.flatten(0, 1).softmax(1))
    torch.testing.assert_close(soft.mean(), expected)  # as self-distillation computes it
    gradients = [torch.autograd.grad(f(student, teacher).sum(), student)[0] for f in (soft_cross_entropy, forward_kl)]
    torch.testing.assert_close(*gradients)


@each_kind
def test_the_gradient_keeps_its_size_at_high_temperatures(kind: str, logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """It goes to a limit, and reaches the student alone."""
    student, teacher = (x.requires_grad_() for x in logits)
    gradients = []
    for temperature in (50.0, 100.0):
        value = loss(kind, temperature)(student, teacher).sum()
        gradient, none = torch.autograd.grad(value, (student, teacher), allow_unused=True)
        assert none is None
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=0.1, atol=2e-3)
    assert gradients[0].abs().max() > 0.01


@each_kind
def test_gradients_are_finite_where_logits_are_extreme(kind: str) -> None:
    student = torch.tensor([[1e4, 0.0, 0.0], [0.0, -1e4, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    value = loss(kind)(student, torch.tensor([[0.0, 1e4, 0.0], [0.0, 1e4, -1e4]]))
    value.sum().backward()
    assert value.dtype == torch.float32 and bool(value.isfinite().all())
    assert student.grad is not None and bool(student.grad.isfinite().all())
