"""Checks of chapter 7, "Better in the same minutes"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from groundling.course.checks import expect, expect_close
from groundling.tasks.losses.divergence import forward_kl


def steps_in_budget(answer: Callable[..., Any]) -> None:
    found = answer(10.0, [9.0, 1.0, 1.0, 1.0, 1.0])
    expect(found is not None, "It should return a number of steps.")
    expect(found != 3, "One slow first step changed the result: that is the mean. Take the median.")
    expect(found != 1, "That is the time of the first step. Take the median of all.")
    expect(found == 10, f"10 seconds are 10 steps of 1 second, not {found}.")
    even = answer(10.0, [1.0, 1.0, 3.0, 3.0])
    expect(even == 5, f"The median of 1, 1, 3, 3 is 2, so 10 seconds are 5 steps, not {even}.")
    part = answer(10.0, [4.0, 4.0, 4.0])
    expect(part == 2 and isinstance(part, int), f"Only whole steps that fit count: 2 of 4 seconds in 10, not {part}.")
    expect(answer(0.5, [1.0]) == 1, f"It should be at least 1 step, not {answer(0.5, [1.0])}.")


def paired_gain(answer: Callable[..., Any]) -> None:
    before, after = [2.0, 3.0, 4.0, 9.0], [1.0, 2.5, 3.9, 8.0]
    found = answer(list(before), list(after))
    expect(isinstance(found, tuple | list) and len(found) == 2, "It should return two numbers: gain and error.")
    gain, error = map(float, found)
    expect(gain > 0, "A lower loss after the change is a gain: before minus after.")
    expect_close("The gain", gain, 0.65, hint="It is the mean of the differences.")
    differences = torch.tensor(before) - torch.tensor(after)
    right = differences.std().item() / 2
    expect(error < 1, "That is the error of two separate means. Take the differences first, then their spread.")
    expect(abs(error - 2 * right) > 1e-3, "That is how much one window varies. The mean of n varies √n times less.")
    expect_close("The standard error", error, right, hint="Divide the sum of squares by n - 1, as for a sample.")


def distillation_loss(answer: Callable[..., Any]) -> None:
    draw = torch.Generator().manual_seed(1)
    student, teacher = (2 * torch.randn(2, 3, 7, generator=draw) for _ in range(2))
    same = answer(student.clone(), student.clone())
    expect(isinstance(same, torch.Tensor), "It should return a tensor, so that backward() works.")
    expect(same.dim() == 0, f"It should return a scalar, not shape {tuple(same.shape)}: the mean over positions.")
    expect(abs(float(same)) < 1e-5,
           f"For equal predictions it should be 0, not {float(same):.3g}. Subtract the teacher's own entropy: "
           "the KL divergence is Σ p (log p - log q).")  # fmt: skip
    mine, theirs = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss = answer(mine, theirs)
    wanted, reverse = forward_kl(student, teacher).mean(), forward_kl(teacher, student).mean()
    value = loss.detach().float()
    expect(value >= -1e-6, "It is negative. log p - log q, not log q - log p.")
    expect(abs(float(value - reverse)) > 1e-4, "That is KL(student, teacher). Weight by the teacher's probabilities.")
    expect(abs(float(value - 6 * wanted)) > 1e-4, "That is the sum over positions. Take their mean.")
    expect_close("The loss", value, wanted, hint="Sum over the vocabulary, then the mean over positions.")
    expect(loss.requires_grad, "No gradient reaches the student.")
    loss.backward()
    expect(mine.grad is not None, "No gradient reaches the student.")
    expect(theirs.grad is None or not theirs.grad.any(), "A gradient reaches the teacher. Use teacher.detach().")
    gradient = (student.softmax(-1) - teacher.softmax(-1)) / 6
    expect_close("The gradient for the student's logits", mine.grad, gradient, hint="It should be (q - p) / positions.")
