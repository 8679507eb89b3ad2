"""Log-probabilities of tokens, from which the losses of preferences and policies are made."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p of each target, (B, T) in nats: `logits` (B, T, V), `targets` (B, T) int64.

    In float32, because the error of a bfloat16 adds up over a reply to more than the margins that are learned from it.
    """
    return -F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """The entropy of each prediction, in nats: (..., V) -> (...)."""
    logprobs = F.log_softmax(logits.float(), dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The sum of each row where the mask is 1: (B, T), (B, T) -> (B,)."""
    return (values * mask).sum(-1)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of each row where the mask is 1: (B, T), (B, T) -> (B,). 0 for a row without any."""
    return masked_sum(values, mask) / mask.sum(-1).clamp(min=1)
