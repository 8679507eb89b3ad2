"""Policy gradients: raise the log-probabilities of sampled replies by how much better they were than expected.

GRPO (Shao et al., "DeepSeekMath", 2024) samples a group of replies to each prompt and compares them with each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from groundling.config.methods import GrpoSettings
from groundling.tasks.losses.logprobs import masked_mean, masked_sum

_MOST = 20.0  # of a log-ratio, before exp
_SPREAD = 1e-4  # added to a group's standard deviation


def group_advantages(
    rewards: torch.Tensor, baseline: Literal["group", "loo"], scale: Literal["none", "group"] = "none"
) -> torch.Tensor:
    """How much better each reply is than its group: rewards (prompts, replies) -> advantages of the same shape.

    `baseline` is the mean of the group, or of the other replies in it (Kool et al., "Buy 4 REINFORCE Samples, Get a
    Baseline for Free!", 2019), which is n / (n - 1) times as much. `scale` "group" divides by the group's standard
    deviation, as in the first GRPO. A group of equal rewards gets exactly 0.
    """
    n = rewards.size(1)
    advantages = rewards - rewards.mean(1, keepdim=True)
    if baseline == "loo":
        advantages = advantages * (n / (n - 1))
    if scale == "group":
        advantages = advantages / (rewards.std(1, keepdim=True) + _SPREAD)
    # The mean of equal numbers may differ from them by rounding.
    return torch.where((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0, advantages)


@dataclass(frozen=True)
class Sampled:
    """Log-probabilities of B sampled replies, (B, T) each in nats, under

    - `logprobs`: the policy, with its gradient,
    - `old`: the policy that sampled them. For its first update, these are `logprobs.detach()`,
    - `reference`: the model that it should stay near, if any.

    `mask` is 1 for tokens that were sampled, the end included, and 0 for forced ones and padding.
    """

    logprobs: torch.Tensor
    old: torch.Tensor
    mask: torch.Tensor
    reference: torch.Tensor | None = None

    def whole_replies(self) -> Sampled:
        """Each reply as one action, (B, 1)."""
        parts = (self.logprobs, self.old, self.reference)
        logprobs, old, reference = (None if x is None else masked_sum(x, self.mask)[:, None] for x in parts)
        assert logprobs is not None and old is not None
        return Sampled(logprobs, old, torch.ones_like(logprobs), reference)


def policy_loss(
    sampled: Sampled, advantages: torch.Tensor, settings: GrpoSettings
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """The loss, a sum over replies, and figures. `advantages` (B,). Divide the sum by the `divisor` of the whole step.

    Per token, the loss is PPO's clipped surrogate (Schulman et al., 2017), where `epsilon_high` may widen the clipping
    above (Yu et al., "DAPO", 2025), plus beta times the KL divergence. `settings.loss_type` is how tokens are averaged:

    - grpo: over each reply, so that a token of a long reply counts less;
    - dapo: over all tokens of the step;
    - dr_grpo: over the longest possible reply, a constant (Liu et al., "Understanding R1-Zero-Like Training", 2025);
    - rloo: not at all. A whole reply is one action with one ratio (Ahmadian et al., "Back to Basics", 2024).

    The value is not a measure of progress: it is near 0 at each first update. The figures are means over tokens, or
    replies for rloo: the share that was clipped, and log(policy / reference), whose mean estimates the KL divergence.
    """
    s = sampled.whole_replies() if settings.loss_type == "rloo" else sampled
    ratio = (s.logprobs - s.old).clamp(max=_MOST).exp()
    high = settings.epsilon_high or settings.epsilon
    surrogate = ratio * advantages[:, None]
    clipped = ratio.clamp(1 - settings.epsilon, 1 + high) * advantages[:, None]
    losses = -torch.minimum(surrogate, clipped)
    figures = {"clipped": _mean((clipped < surrogate).float(), s.mask)}
    if s.reference is not None:
        losses = losses + settings.beta * kl_penalty(s.logprobs, s.old, s.reference)
        figures["kl"] = _mean(s.logprobs.detach() - s.reference, s.mask)
    reduce = masked_mean if settings.loss_type == "grpo" else masked_sum
    return reduce(losses, s.mask).sum(), figures


def divisor(mask: torch.Tensor, settings: GrpoSettings, longest: int) -> float:
    """What `policy_loss` of replies with this `mask`, (B, T), is divided by. It adds up over the micro-batches of a
    step. `longest` is the length of the longest possible reply."""
    match settings.loss_type:
        case "dapo":
            return float(mask.sum())
        case "dr_grpo":
            return float(len(mask) * longest)
    return float(len(mask))


def kl_penalty(logprobs: torch.Tensor, old: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """An estimate of KL(policy, reference) from each sampled token, in nats, in any shape.

    The value is Schulman's k3, e^d - d - 1 with d = log(reference / policy), which is never negative and right on
    average ("Approximating KL Divergence", 2020). But the average of k3's own gradient is that of KL(reference,
    policy). Times the ratio of `logprobs` to `old`, it is that of KL(policy, reference), and the same, token by token,
    as the gradient of k2 = d² / 2 times that ratio, which cannot overflow.
    """
    d = reference - logprobs
    bounded = d.detach().clamp(-_MOST, _MOST)
    k2, k3 = d**2 / 2, torch.expm1(bounded) - bounded
    ratio = (logprobs - old).detach().clamp(max=_MOST).exp()
    return ratio * (k3 + (k2 - k2.detach()))


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)
