"""Policy gradients, compared with exact expectations over every reply that a tiny model can write."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, get_args, get_type_hints

import pytest
import torch

from groundling.config import ModelSettings
from groundling.config.methods import GrpoSettings
from groundling.model.gpt import GPT
from groundling.tasks.losses.logprobs import token_logprobs
from groundling.tasks.losses.policy import Sampled, divisor, group_advantages, kl_penalty, policy_loss
from untrained import untrained

KINDS = get_args(get_type_hints(GrpoSettings)["loss_type"])
END, LONGEST = 3, 3

each_kind = pytest.mark.parametrize("kind", KINDS)


def settings(kind: str, **others: Any) -> GrpoSettings:
    return GrpoSettings(loss_type=kind, **others)  # type: ignore[arg-type]


class World:
    """Every reply of up to three tokens of {0, 1, 2, END} to the prompt [0], its reward, and a model that writes it."""

    def __init__(self) -> None:
        config = ModelSettings(n_layer=1, n_head=2, n_embd=8, block_size=4)
        self.model: GPT = untrained(config, vocab_size=4, spread=0.5)
        replies = torch.tensor(list(product(range(4), repeat=LONGEST)))
        ended = (replies == END).cumsum(1) - (replies == END).long() > 0  # before this token
        self.replies = replies[((replies == 0) | ~ended).all(1)]  # what follows the end is padding
        self.mask = (~((self.replies == END).cumsum(1) - (self.replies == END).long() > 0)).float()
        self.rewards = torch.rand(len(self.replies), generator=torch.Generator().manual_seed(1))
        self.reference = self.logprobs(untrained(config, vocab_size=4, spread=0.3)).detach()

    def logprobs(self, model: GPT | None = None) -> torch.Tensor:
        tokens = torch.cat([torch.zeros_like(self.replies[:, :1]), self.replies], dim=1)
        return token_logprobs((model or self.model)(tokens[:, :-1]), tokens[:, 1:])

    def probabilities(self) -> torch.Tensor:
        return (self.logprobs() * self.mask).sum(1).exp()

    def gradient(self, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.model.zero_grad()
        function().backward()
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])

    def sampled(self, rows: Any = slice(None)) -> Sampled:
        logprobs = self.logprobs()[rows]
        return Sampled(logprobs, logprobs.detach(), self.mask[rows])


@pytest.fixture
def world() -> World:
    return World()


def test_every_reply_is_there(world: World) -> None:
    assert len(world.replies) == 1 + 3 + 9 * 4
    assert world.probabilities().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["dr_grpo", "dapo", "rloo"])
def test_the_policy_gradient_is_that_of_the_expected_reward(kind: str, world: World) -> None:
    """Weighted by probability, with the exact baseline. Only grpo's average depends on the length, and is biased."""
    exact = world.gradient(lambda: (world.probabilities() * world.rewards).sum())
    p = world.probabilities().detach()
    advantages = p * (world.rewards - (p * world.rewards).sum())
    found = world.gradient(lambda: policy_loss(world.sampled(), advantages, settings(kind))[0])
    torch.testing.assert_close(-found, exact, rtol=1e-4, atol=1e-6)
    biased = world.gradient(lambda: policy_loss(world.sampled(), advantages, settings("grpo"))[0])
    assert torch.nn.functional.cosine_similarity(biased, -exact, dim=0) < 0.999


@pytest.mark.parametrize(("baseline", "share"), [("loo", 1.0), ("group", 0.5)])
def test_a_baseline_of_a_group_of_two_is_unbiased(baseline: Any, share: float, world: World) -> None:
    """Over all pairs of replies: the leave-one-out gradient is exact, the group's mean gives (n - 1) / n of it."""
    exact = world.gradient(lambda: (world.probabilities() * world.rewards).sum())
    p, n = world.probabilities().detach(), len(world.replies)
    rows = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    advantages = group_advantages(world.rewards[rows], baseline) * p[rows].prod(1, keepdim=True) / 2
    found = world.gradient(
        lambda: policy_loss(world.sampled(rows.flatten()), advantages.flatten(), settings("rloo"))[0]
    )
    torch.testing.assert_close(-found, share * exact, rtol=1e-4, atol=1e-6)


def test_the_kl_term_has_the_value_and_gradient_of_the_reverse_kl_divergence(world: World) -> None:
    """For whole replies as actions, by enumeration. As a part of the reward, as in RLOO's paper, it is the same."""
    reference = (world.reference * world.mask).sum(1)

    def exact() -> torch.Tensor:
        logprobs = (world.logprobs() * world.mask).sum(1)
        return (logprobs.exp() * (logprobs - reference)).sum()

    p = world.probabilities().detach()

    def estimate() -> torch.Tensor:
        whole = world.sampled().whole_replies().logprobs[:, 0]
        return (p * kl_penalty(whole, whole.detach(), reference)).sum()

    torch.testing.assert_close(world.gradient(estimate), world.gradient(exact), rtol=1e-4, atol=1e-6)
    assert estimate().item() == pytest.approx(exact().item(), abs=1e-5)
    assert exact() > 0.1
    log_ratios = world.logprobs().detach() - world.reference
    rewards = world.rewards - 0.3 * (log_ratios * world.mask).sum(1)
    found = world.gradient(lambda: policy_loss(world.sampled(), p * rewards, settings("rloo"))[0])
    objective = world.gradient(lambda: (world.probabilities() * world.rewards).sum() - 0.3 * exact())
    torch.testing.assert_close(-found, objective, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_the_kl_term_is_that_of_k2_and_of_the_ratio_times_k3() -> None:
    """Token by token, also after an update, and for each state of a table in expectation."""
    torch.manual_seed(0)
    new, old, reference = -torch.rand(3, 50) * 4
    for before in (new, old):
        x = new.clone().requires_grad_()
        (found,) = torch.autograd.grad(kl_penalty(x, before, reference).sum(), x)
        d = reference - x
        ratio = (x - before).exp()
        (expected,) = torch.autograd.grad((ratio * (d.exp() - d - 1)).sum(), x, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        (k2,) = torch.autograd.grad((ratio.detach() * d**2 / 2).sum(), x)
        torch.testing.assert_close(found, k2)
        torch.testing.assert_close(kl_penalty(x, before, reference), ratio * (d.exp() - d - 1))
    table, other = torch.randn(20, 4, requires_grad=True), torch.randn(20, 4).log_softmax(1)
    logprobs = table.log_softmax(1)
    p = logprobs.detach().exp()
    (exact,) = torch.autograd.grad((logprobs.exp() * (logprobs - other)).sum(), table, retain_graph=True)
    estimate = (p * kl_penalty(logprobs, logprobs.detach(), other)).sum(1)
    torch.testing.assert_close(estimate, (p * (logprobs - other)).sum(1), rtol=1e-4, atol=1e-6)
    (found,) = torch.autograd.grad(estimate.sum(), table)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


def test_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.1] * 4, [0.0, 1.0, 2.0, 5.0]])
    equal = torch.full((1, 7), 0.1)
    group, loo = group_advantages(rewards, "group"), group_advantages(rewards, "loo")
    assert group[2].tolist() == [-2, -1, 0, 3] and loo[2].tolist() == pytest.approx([-8 / 3, -4 / 3, 0, 4])
    torch.testing.assert_close(loo, rewards - (rewards.sum(1, keepdim=True) - rewards) / 3)
    torch.testing.assert_close(loo, 4 / 3 * group)
    for kind in (group, group_advantages(rewards, "loo", "group"), group_advantages(rewards, "group", "group")):
        torch.testing.assert_close(kind.sum(1), torch.zeros(3), atol=1e-5, rtol=0)
    scaled = group_advantages(rewards, "group", "group")
    assert scaled[2, 3].item() == pytest.approx(3 / (14 / 3) ** 0.5, rel=1e-3)  # Bessel's n - 1
    assert (equal.mean() != 0.1 * torch.ones(())) and not group_advantages(equal, "group", "group").any()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(group_advantages(rewards[:, order], "group", "group"), scaled[:, order])


def test_clipping_stops_updates_that_went_far_enough_and_no_others() -> None:
    ratios = torch.tensor([0.5, 0.9, 1.1, 1.25, 1.5])
    for advantage, moving in ((1.0, [1, 1, 1, 1, 0]), (-1.0, [0, 1, 1, 1, 1])):
        logprobs = ratios.log()[:, None].requires_grad_()
        sampled = Sampled(logprobs, torch.zeros(5, 1), torch.ones(5, 1))
        advantages = torch.full((5,), advantage)
        loss, figures = policy_loss(sampled, advantages, settings("dapo", epsilon=0.2, epsilon_high=0.28))
        loss.backward()
        assert logprobs.grad is not None
        torch.testing.assert_close(logprobs.grad[:, 0], -advantage * ratios * torch.tensor(moving))
        assert figures["clipped"] == pytest.approx(0.2)


def test_the_value_of_a_first_update(world: World) -> None:
    """It is 0, whatever replies are worth: no measure of progress."""
    advantages = group_advantages(world.rewards.view(-1, 8), "group").flatten()
    assert policy_loss(world.sampled(), advantages, settings("grpo"))[0].item() == pytest.approx(0, abs=1e-5)
    assert policy_loss(world.sampled(), advantages, settings("rloo"))[0].item() == pytest.approx(0, abs=1e-5)


def test_figures_are_means_over_sampled_tokens() -> None:
    s = Sampled(
        torch.tensor([[-1.0, -2.0, -9.0]]), torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 0.0]]), torch.zeros(1, 3)
    )
    assert policy_loss(s, torch.ones(1), settings("dapo"))[1]["kl"] == -1.5
    assert policy_loss(s, torch.ones(1), settings("rloo"))[1]["kl"] == -3.0


@each_kind
@pytest.mark.parametrize("n", [2, 4])
def test_a_reply_counts_the_same_in_any_micro_batch(kind: str, n: int) -> None:
    torch.manual_seed(0)
    old, reference, advantages = -torch.rand(8, 6), -torch.rand(8, 6), torch.randn(8)
    mask = (torch.arange(6) < torch.randint(1, 7, (8, 1))).float()
    chosen = settings(kind, beta=0.2)

    def gradient(parts: int) -> torch.Tensor:
        logprobs = (old + 0.1).requires_grad_()
        whole = divisor(mask, chosen, longest=10)
        assert whole == pytest.approx(sum(divisor(m, chosen, longest=10) for m in mask.chunk(parts)))
        for rows in torch.arange(8).chunk(parts):
            sampled = Sampled(logprobs[rows], old[rows], mask[rows], reference[rows])
            (policy_loss(sampled, advantages[rows], chosen)[0] / whole).backward()
        assert logprobs.grad is not None
        return logprobs.grad

    torch.testing.assert_close(gradient(n), gradient(1))
    assert bool((gradient(1)[mask == 0] == 0).all())


@each_kind
def test_gradients_are_finite_where_logits_are_extreme(kind: str) -> None:
    logits = torch.zeros(4, 3, 5)
    logits[0, :, 0], logits[1, :, 1], logits[2, :, 0] = 1e4, 1e4, -1e4
    logits.requires_grad_()
    logprobs = token_logprobs(logits, torch.zeros(4, 3, dtype=torch.long))
    for old, reference in ((logprobs.detach(), -logprobs.detach() - 1e4), (torch.full((4, 3), -500.0), logprobs * 0)):
        sampled = Sampled(logprobs, old, torch.ones(4, 3), reference.detach())
        loss, _ = policy_loss(sampled, torch.tensor([1.0, -1.0, -1.0, 1.0]), settings(kind, beta=0.1))
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert loss.isfinite() and bool(gradient.isfinite().all())
