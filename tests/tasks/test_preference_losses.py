"""Losses of pairs: their values where the model is its own reference, their gradients, and what they forgive."""

from __future__ import annotations

import math
from typing import Any, get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F

from groundling.config.methods import DpoSettings
from groundling.tasks.losses.logprobs import entropy, masked_mean, masked_sum, token_logprobs
from groundling.tasks.losses.preference import (
    Replies,
    kto_baseline,
    preference_figures,
    preference_losses,
    reward_figures,
    reward_losses,
)  # fmt: skip

KINDS = get_args(get_type_hints(DpoSettings)["loss_type"])
LENGTHS = torch.tensor([3.0, 1.0, 7.0, 2.0])


def pairs(seed: int = 0, policy: Any = None) -> tuple[Replies, Replies]:
    """Four pairs. The policy is its own reference, unless its log-probabilities are given."""
    torch.manual_seed(seed)
    reference = -torch.rand(2, 4) * 10 - 0.1
    policy = reference if policy is None else policy
    lengths = (LENGTHS, LENGTHS.flip(0))
    first, second = (Replies(policy[i], lengths[i], reference[i]) for i in range(2))
    return first, second


def losses(kind: str, chosen: Replies, rejected: Replies, **settings: Any) -> torch.Tensor:
    return preference_losses(chosen, rejected, DpoSettings(loss_type=kind, **settings), kl=torch.tensor(0.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "settings", "value"),
    [
        ("sigmoid", {}, math.log(2)), ("sigmoid", {"label_smoothing": 0.2}, math.log(2)), ("hinge", {}, 1.0),
        ("ipo", {}, 25.0), ("ipo", {"beta": 0.5}, 1.0), ("kto", {}, 0.5),
    ],
)  # fmt: skip
def test_values_where_the_model_is_its_own_reference(kind: str, settings: Any, value: float) -> None:
    chosen, rejected = pairs()
    torch.testing.assert_close(losses(kind, chosen, rejected, **settings), torch.full((4,), value))
    figures = preference_figures(chosen, rejected, beta=0.1)
    assert figures["margin"] == 0 and figures["accuracy"] == 0.5  # ties are half right
    assert figures["chosen_logprob"] == chosen.logprobs.mean()


def test_values_without_a_reference() -> None:
    one, other = Replies(torch.tensor([-4.0]), torch.tensor([2.0])), Replies(torch.tensor([-1.0]), torch.tensor([1.0]))
    simpo = losses("simpo", one, other, beta=2.0, gamma=0.5).item()
    assert simpo == pytest.approx(-math.log(1 / (1 + math.exp(2.0 * 1 + 0.5))))
    odds = [math.exp(m) / (1 - math.exp(m)) for m in (-2.0, -1.0)]
    expected = 2.0 - 0.1 * math.log(1 / (1 + odds[1] / odds[0]))
    assert losses("orpo", one, other).item() == pytest.approx(expected)
    assert preference_figures(one, other, beta=2.0)["margin"] == -2.0


def test_the_gradient_of_dpo_is_the_papers() -> None:
    policy = (-torch.rand(2, 4) * 10).requires_grad_()
    chosen, rejected = pairs(policy=policy)
    losses("sigmoid", chosen, rejected, beta=0.3).sum().backward()
    expected = 0.3 * torch.sigmoid(-0.3 * (chosen.log_ratio - rejected.log_ratio)).detach()
    torch.testing.assert_close(policy.grad, torch.stack([-expected, expected]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_makes_the_chosen_likelier_and_the_anchor_more_so(kind: str) -> None:
    gradients = []
    for anchor in (0.0, 2.0):
        policy = (-torch.rand(2, 4, generator=torch.Generator().manual_seed(1)) * 5 - 1).requires_grad_()
        chosen, rejected = pairs(policy=policy)
        losses(kind, chosen, rejected, anchor=anchor, beta=0.02).sum().backward()
        assert policy.grad is not None
        gradients.append(policy.grad)
    assert bool((gradients[0][0] < 0).all()) and bool((gradients[0][1] > 0).all())
    torch.testing.assert_close(gradients[1][0], gradients[0][0] - 2.0 / LENGTHS)
    assert torch.equal(gradients[1][1], gradients[0][1])


def test_label_smoothing_has_its_minimum_where_the_labels_are_that_unsure() -> None:
    margin = torch.linspace(-60, 60, 12001)
    one = Replies(margin, torch.ones(()), torch.zeros(()))
    other = Replies(torch.zeros(()), torch.ones(()), torch.zeros(()))
    lowest = margin[losses("sigmoid", one, other, label_smoothing=0.2).argmin()].item()
    assert torch.sigmoid(torch.tensor(0.1 * lowest)).item() == pytest.approx(0.8, abs=1e-3)


def test_ktos_baseline_is_a_kl_divergence_without_gradient() -> None:
    policy = torch.tensor([-1.0, -5.0], requires_grad=True)
    baseline = kto_baseline(Replies(policy, torch.ones(2), torch.tensor([-2.0, -8.0])))
    assert baseline.item() == 2.0 and not baseline.requires_grad
    assert kto_baseline(Replies(policy, torch.ones(2), torch.zeros(2))) == 0.0
    one = Replies(torch.tensor([-3.0]), torch.ones(1), torch.tensor([-6.0]))
    value = preference_losses(one, one, DpoSettings(loss_type="kto", beta=0.5), baseline).item()
    assert value == pytest.approx(0.5)  # as desired 1 - s(0.5 (3 - 2)), as undesired 1 - s(0.5 (2 - 3))
    nothing = Replies(torch.tensor([-90.0]), torch.ones(1), torch.zeros(1))
    value = preference_losses(one, nothing, DpoSettings(loss_type="kto", beta=0.5), baseline).item()
    assert value == pytest.approx((1 - 1 / (1 + math.exp(-0.5))) / 2)


def test_reward_losses() -> None:
    chosen, rejected = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 2.0, -1.0])
    expected = torch.log1p(torch.exp(rejected - chosen)) + 0.01 * torch.tensor([0.0, 9.0, 1.0])
    torch.testing.assert_close(reward_losses(chosen, rejected, center=0.01), expected)
    figures = reward_figures(chosen, rejected)
    assert figures["accuracy"] == 0.5 and figures["margin"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_where_logits_are_extreme(kind: str) -> None:
    """Down to replies whose probability is 1 or rounds to 0, in bfloat16 too."""
    logits = torch.zeros(4, 6, 5, dtype=torch.bfloat16)
    logits[0, :, 0], logits[1, :, 1], logits[2, :, 0], logits[3, :, 0] = 1e4, 1e4, -1e4, 1e-3
    logits.requires_grad_()
    logprobs = token_logprobs(logits, torch.zeros(4, 6, dtype=torch.long)).sum(1)
    replies = [Replies(part, torch.full((2,), 6.0), torch.zeros(2)) for part in logprobs.split(2)]
    loss = losses(kind, *replies, anchor=0.1).sum() + losses(kind, *replies[::-1]).sum()
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 4])
def test_a_pair_counts_the_same_in_any_micro_batch(kind: str, n: int) -> None:
    """From logits, with ragged masks: sums over micro-batches divided by the pairs of the step are the whole step."""
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 6, 5), torch.randint(5, (8, 6))
    mask = (torch.arange(6) < torch.randint(1, 7, (8, 1))).float()
    reference = -torch.rand(8) * 9

    def gradient(parts: int) -> torch.Tensor:
        table = logits.clone().requires_grad_()
        for rows in torch.arange(8).view(-1, 2).chunk(parts):  # pairs stay together
            rows = rows.flatten()
            sums = masked_sum(token_logprobs(table[rows], targets[rows]), mask[rows])
            chosen, rejected = (Replies(sums[i::2], mask[rows][i::2].sum(1), reference[rows][i::2]) for i in range(2))
            (losses(kind, chosen, rejected).sum() / 4).backward()
        assert table.grad is not None
        return table.grad

    torch.testing.assert_close(gradient(n), gradient(1))


def test_log_probabilities_are_float32_and_padding_counts_nothing() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 5).bfloat16(), torch.randint(5, (2, 3))
    found = token_logprobs(logits, targets)
    expected = F.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    mask = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert masked_sum(found, mask).tolist() == [pytest.approx(expected[0, :2].sum().item()), 0.0]
    assert masked_mean(found, mask).tolist() == [pytest.approx(expected[0, :2].mean().item()), 0.0]
    assert entropy(torch.zeros(2, 4)).tolist() == pytest.approx([math.log(4)] * 2)
    assert entropy(torch.tensor([1e4, 0.0])) == 0
