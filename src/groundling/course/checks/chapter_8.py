"""Checks of chapter 8, "After pre-training"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from groundling.course.checks import expect, expect_close
from groundling.tasks.losses.policy import group_advantages as ours


def sft_loss(answer: Callable[..., Any]) -> None:
    draw = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(3, 6, 9, generator=draw)
    tokens = torch.randint(9, (3, 6), generator=draw)
    reply = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0]]).bool()
    mine = logits.clone().requires_grad_()
    loss = answer(mine, tokens.clone(), reply.clone())
    expect(isinstance(loss, torch.Tensor) and loss.dim() == 0, "It should return a scalar tensor.")
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    learned = reply[:, 1:].float()
    right = (each * learned).sum() / learned.sum()
    value = float(loss.detach())

    def is_not(other: torch.Tensor, sentence: str) -> None:
        expect(abs(value - float(other)) > 1e-4, sentence)

    is_not(each.mean(), "The prompt and the padding count, too. Only tokens of the reply should.")
    early = reply[:, :-1].float()
    is_not((each * early).sum() / early.sum(), "The mask is off by one: it belongs to the tokens that are predicted.")
    is_not((each * learned).mean(), "Divide by the number of reply tokens, not by that of all tokens.")
    rows = (each * learned).sum(1) / learned.sum(1)
    is_not(rows.mean(), "That is the mean of rows. All reply tokens count the same.")
    here = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    is_not((here * reply).sum() / reply.sum(), "Nothing is shifted: logits at t predict the token at t + 1.")
    expect_close("The loss", value, right, hint="Take the cross-entropy where reply[:, 1:] is true.")
    loss.backward()
    expect(mine.grad is not None and not mine.grad[0, 0].any(), "A gradient reaches logits that predict the prompt.")


def reward_of(answer: Callable[..., Any]) -> None:
    def asked(reply: str, right: str, wanted: float, why: str) -> None:
        found = answer(reply, right)
        expect(found is not None, "It should return 1.0 or 0.0.")
        expect(float(found) == wanted, f"The reply {reply!r} to a question with the answer {right!r} earns {wanted}, "
                                       f"not {float(found)}. {why}")  # fmt: skip

    asked("eeo#o", "o", 1.0, "It is right.")
    asked("eeo#e", "o", 0.0, "The right letter occurs in the working, but the answer is wrong.")
    asked("#e#o", "o", 1.0, "The answer is what follows the last #.")
    asked("#o#e", "o", 0.0, "The answer is what follows the last #.")
    asked("o", "o", 0.0, "Without a # there is no answer.")
    asked("", "o", 0.0, "Without a # there is no answer.")
    asked("#120", "12", 0.0, "It should be exactly the answer, not begin with it.")
    asked("#512", "12", 0.0, "It should be exactly the answer, not end with it.")
    asked("# 12", "12", 0.0, "Exactly means without spaces, too.")
    asked("#", "o", 0.0, "Nothing follows the #.")


def group_advantages(answer: Callable[..., Any]) -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    found = answer(rewards.clone())
    expect(found is not None, "It should return a tensor.")
    found = torch.as_tensor(found)
    expect(found.shape == rewards.shape, f"It should have the shape of the rewards, not {tuple(found.shape)}.")
    expect(bool(found.isfinite().all()), "A group of equal rewards gives NaN: its spread is 0, and you divide by it.")
    wanted = ours(rewards, "group")
    expect(
        (found - (rewards - rewards.mean())).abs().max() > 1e-4,
        "That is the mean of all rewards. Each group has its own.",
    )
    expect(
        (found - (rewards - rewards.mean(0))).abs().max() > 1e-4,
        "A row is a group: take the mean over its replies, dim 1.",
    )
    expect(not found[1].any(), "Where all replies earn the same, every advantage is 0.")
    expect(float(found[0, 0]) > 0, "A reply that earned more than its group has a positive advantage.")
    expect_close("The advantages", found, wanted, hint="Subtract the mean of the group, and do nothing else.")


def policy_gradient_loss(answer: Callable[..., Any]) -> None:
    draw = torch.Generator().manual_seed(2)
    logprobs = -torch.rand(4, 5, generator=draw)
    reply = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]).bool()
    advantages = torch.tensor([0.5, -1.0, 1.5, 0.25])
    mine = logprobs.clone().requires_grad_()
    loss = answer(mine, reply.clone(), advantages.clone())
    expect(isinstance(loss, torch.Tensor) and loss.dim() == 0, "It should return a scalar tensor.")
    expect(loss.requires_grad, "No gradient reaches the log-probabilities.")
    loss.backward()
    assert mine.grad is not None
    expect(not mine.grad[~reply].any(), "Tokens of the prompt or after the end have a gradient. Multiply by `reply`.")
    expect(float(mine.grad[0, 2]) < 0, "The sign is wrong: a step down this loss makes good replies less likely.")
    wanted = -advantages[:, None] * reply / 4
    means = wanted / reply.sum(1, keepdim=True)
    expect(
        (mine.grad - means).abs().max() > 1e-5, "Tokens of a long reply count less. Sum over tokens, do not average."
    )
    expect((mine.grad - 4 * wanted).abs().max() > 1e-5, "That is the sum over replies. Take their mean.")
    expect_close("Its gradient", mine.grad, wanted, hint="It should be -advantage / B for each token of a reply.")
    _as_expected_reward(answer)


def _as_expected_reward(answer: Callable[..., Any]) -> None:
    """Over all replies, weighted by their probability, its gradient is that of the expected reward."""
    logits = torch.tensor([0.3, -0.2, 0.9], requires_grad=True)
    rewards = torch.tensor([1.0, 0.0, 0.5])
    (exact,) = torch.autograd.grad(-(logits.softmax(0) * rewards).sum(), logits)
    total = torch.zeros(3)
    for action, p in enumerate(logits.softmax(0).tolist()):
        logprob = logits.log_softmax(0)[action].view(1, 1)
        loss = answer(logprob, torch.ones(1, 1, dtype=torch.bool), rewards[action : action + 1])
        total += p * torch.autograd.grad(loss, logits)[0]
    expect_close(
        "The expected gradient over all replies", total, exact, hint="It should be that of the expected reward."
    )
