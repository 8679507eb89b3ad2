"""Our answers to the exercises of chapter 3."""

from __future__ import annotations

import torch


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_head: int) -> torch.Tensor:
    B, T, C = q.shape
    q, k, v = (x.view(B, T, n_head, C // n_head).transpose(1, 2) for x in (q, k, v))  # (B, nh, T, hd)
    scores = q @ k.mT / (C // n_head) ** 0.5
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).reshape(B, T, C)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def count_parameters(n_layer: int, n_embd: int, vocab_size: int, block_size: int) -> int:
    C = n_embd
    norm = 2 * C
    attention = (C * 3 * C + 3 * C) + (C * C + C)
    mlp = (C * 4 * C + 4 * C) + (4 * C * C + C)
    block = 2 * norm + attention + mlp
    return vocab_size * C + block_size * C + n_layer * block + norm
