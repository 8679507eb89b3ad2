"""Wrong answers to the exercises of chapter 2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from wrong import wrong


@wrong("cross_entropy", "You gave bits")
def in_bits(logits: torch.Tensor, targets: torch.Tensor) -> Any:
    return F.cross_entropy(logits, targets) / math.log(2)


@wrong("cross_entropy", "exp() overflows")
def overflows(logits: torch.Tensor, targets: torch.Tensor) -> Any:
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return -p[torch.arange(len(targets)), targets].log().mean()


@wrong("cross_entropy", "the mean after it")
def logarithm_of_the_mean(logits: torch.Tensor, targets: torch.Tensor) -> Any:
    return -logits.softmax(-1)[torch.arange(len(targets)), targets].mean().log()


@wrong("cross_entropy", "applied twice")
def softmax_twice(logits: torch.Tensor, targets: torch.Tensor) -> Any:
    return F.cross_entropy(logits.softmax(-1), targets)


@wrong("cross_entropy", "not their sum")
def summed(logits: torch.Tensor, targets: torch.Tensor) -> Any:
    return F.cross_entropy(logits, targets, reduction="sum")


@wrong("interpolate", "A context that was never seen")
def not_smoothed(counts: np.ndarray, shorter: np.ndarray) -> Any:
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(-1, keepdims=True)


@wrong("interpolate", "its loss is infinite")
def smoothed_if_unseen(counts: np.ndarray, shorter: np.ndarray) -> Any:
    total = counts.sum(-1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), shorter)


@wrong("interpolate", "You added 1 to each count")
def add_one(counts: np.ndarray, shorter: np.ndarray) -> Any:
    total = counts.sum(-1, keepdims=True)
    return np.where(total > 0, (counts + 1) / (total + counts.shape[-1]), shorter)


@wrong("interpolate", "*different* tokens")
def all_tokens_instead_of_kinds(counts: np.ndarray, shorter: np.ndarray) -> Any:
    total = counts.sum(-1, keepdims=True)
    return np.where(total > 0, (counts + total * shorter) / np.maximum(2 * total, 1), shorter)


@wrong("interpolate", "Each row should sum to 1")
def divided_by_the_total_alone(counts: np.ndarray, shorter: np.ndarray) -> Any:
    total, kinds = counts.sum(-1, keepdims=True), (counts > 0).sum(-1, keepdims=True)
    return np.where(total > 0, (counts + kinds * shorter) / np.maximum(total, 1), shorter)


@wrong("to_bits_per_byte", "You divided by characters")
def bits_per_character(nats_per_token: float, n_tokens: int, text: str) -> Any:
    return nats_per_token * n_tokens / math.log(2) / len(text)


@wrong("to_bits_per_byte", "a bit is smaller")
def multiplied(nats_per_token: float, n_tokens: int, text: str) -> Any:
    return nats_per_token * n_tokens * math.log(2) / len(text.encode())


@wrong("to_bits_per_byte", "The result is in nats")
def nats_per_byte(nats_per_token: float, n_tokens: int, text: str) -> Any:
    return nats_per_token * n_tokens / len(text.encode())


@wrong("to_bits_per_byte", "upside down")
def upside_down(nats_per_token: float, n_tokens: int, text: str) -> Any:
    return nats_per_token / math.log(2) * len(text.encode()) / n_tokens
