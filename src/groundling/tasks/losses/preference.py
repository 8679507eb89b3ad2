"""Losses of pairs of replies to the same prompt, of which people chose one and rejected the other.

DPO (Rafailov et al., "Direct Preference Optimization", 2023) reads a reward from the model itself: how much more likely
a reply is than under the reference model, times beta. Its relatives differ in what they do with the two rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from groundling.config.methods import DpoSettings


@dataclass(frozen=True)
class Replies:
    """P replies: `logprobs` (P,) are sums over a reply's tokens, its end included, in nats. `lengths` (P,) counts the
    tokens. `reference` (P,) has the sums of the reference model; orpo and simpo need none."""

    logprobs: torch.Tensor
    lengths: torch.Tensor
    reference: torch.Tensor | None = None

    @property
    def mean(self) -> torch.Tensor:
        """Per token, (P,)."""
        return self.logprobs / self.lengths

    @property
    def log_ratio(self) -> torch.Tensor:
        """How much more likely a reply is than under the reference model, (P,)."""
        assert self.reference is not None, "This loss compares with a reference model."
        return self.logprobs - self.reference

    @property
    def nll(self) -> torch.Tensor:
        """The next-token loss of each reply, (P,). RPO adds it for the chosen ones, to keep them likely (Pang et al.,
        "Iterative Reasoning Preference Optimization", 2024)."""
        return -self.mean


def preference_losses(
    chosen: Replies, rejected: Replies, settings: DpoSettings, kl: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss of each pair, (P,). A step's loss is their sum over all its pairs, divided by the number of pairs.

    `kl` is what `kto_baseline` returns, which only kto needs. Beside the paper of DPO:

    - sigmoid: with `label_smoothing`, the conservative DPO of Mitchell, "A note on DPO with noisy preferences", 2023;
    - ipo: Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023, per token;
    - hinge: Zhao et al., "SLiC-HF", 2023;
    - kto: Ethayarajh et al., "KTO", 2024, with the chosen replies as desired and the rejected as undesired examples;
    - orpo: Hong et al., "ORPO", 2024, with `beta` as their lambda;
    - simpo: Meng et al., "SimPO", 2024, with `gamma` as their margin.
    """
    beta, smoothing = settings.beta, settings.label_smoothing
    match settings.loss_type:
        case "sigmoid":
            margin = beta * (chosen.log_ratio - rejected.log_ratio)
            losses = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
        case "ipo":
            per_token = chosen.log_ratio / chosen.lengths - rejected.log_ratio / rejected.lengths
            losses = (per_token - 1 / (2 * beta)) ** 2
        case "hinge":
            losses = F.relu(1 - beta * (chosen.log_ratio - rejected.log_ratio))
        case "kto":
            assert kl is not None, "kto compares with the KL divergence."
            losses = (
                torch.sigmoid(beta * (kl - chosen.log_ratio)) + torch.sigmoid(beta * (rejected.log_ratio - kl))
            ) / 2
        case "orpo":
            losses = chosen.nll - beta * F.logsigmoid(_log_odds(chosen.mean) - _log_odds(rejected.mean))
        case "simpo":
            losses = -F.logsigmoid(beta * (chosen.mean - rejected.mean) - settings.gamma)
    return losses + settings.anchor * chosen.nll if settings.anchor else losses


def kto_baseline(mismatched: Replies) -> torch.Tensor:
    """An estimate of KL(model, reference), a scalar without gradient, from replies that belong to other prompts of the
    batch: the mean of their log-ratios, and at least 0."""
    return mismatched.log_ratio.detach().mean().clamp(min=0)


def reward_losses(chosen: torch.Tensor, rejected: torch.Tensor, center: float) -> torch.Tensor:
    """The loss of each pair, (P,), from a reward model's outputs, (P,) each: Bradley and Terry's of Ouyang et al.,
    "InstructGPT", 2022. Only differences count there, so `center` weights a term that keeps rewards near 0 (Eisenstein
    et al., "Helping or Herding?", 2023)."""
    return -F.logsigmoid(chosen - rejected) + center * (chosen + rejected) ** 2


def reward_figures(chosen: torch.Tensor, rejected: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Means over the pairs, from rewards (P,) each. A tie counts as half right, so guessing has accuracy 0.5."""
    margin = (chosen - rejected).detach()
    return {
        "chosen_reward": chosen.detach().mean(), "rejected_reward": rejected.detach().mean(),
        "margin": margin.mean(), "accuracy": (margin.sign() + 1).mean() / 2,
    }  # fmt: skip


def preference_figures(chosen: Replies, rejected: Replies, beta: float) -> Mapping[str, torch.Tensor]:
    """Means over the pairs: what the model's own rewards say, and the replies' log-probabilities in nats. If both fall,
    the model unlearns both replies. Without a reference model, a reward is beta times the mean log-probability."""
    rewards = [beta * (r.mean if r.reference is None else r.log_ratio) for r in (chosen, rejected)]
    logprobs = {"chosen_logprob": chosen.logprobs, "rejected_logprob": rejected.logprobs}
    return {**reward_figures(*rewards), **{name: value.detach().mean() for name, value in logprobs.items()}}


def _log_odds(logprobs: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) from log p. Its gradient is infinite at p = 1, so that p is kept a little below."""
    logprobs = logprobs.clamp(max=-1e-6)
    return logprobs - torch.log(-torch.expm1(logprobs))
