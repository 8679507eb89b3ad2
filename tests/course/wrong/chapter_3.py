"""Wrong answers to the exercises of chapter 3."""

from __future__ import annotations

from typing import Any

import torch

from wrong import wrong


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_head: int, *, fill: float = -torch.inf, diagonal: int = 1,
    mask: str = "scores", per: str = "head", split: str = "view, transpose", axis: int = -1,
) -> Any:  # fmt: skip
    B, T, C = q.shape
    hd = C // n_head
    if split == "view":
        q, k, v = (x.reshape(B, n_head, T, hd) for x in (q, k, v))
    else:
        q, k, v = (x.view(B, T, n_head, hd).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / {"head": hd**0.5, "model": C**0.5, "nothing": 1}[per]
    future = torch.ones(T, T, dtype=torch.bool).triu(diagonal)
    if mask == "scores":
        scores = scores.masked_fill(future, fill)
    weights = scores.softmax(axis)
    if mask == "weights":
        weights = weights.masked_fill(future, 0)
    y = weights @ v
    return y.reshape(B, T, C) if split == "view" else y.transpose(1, 2).reshape(B, T, C)


@wrong("attend", "before the softmax, not the weights after it")
def mask_after_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_head: int) -> Any:
    return _attention(q, k, v, n_head, mask="weights")


@wrong("attend", "such as 0 or -1, still gives them some weight")
def masked_by_minus_one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_head: int) -> Any:
    return _attention(q, k, v, n_head, fill=-1)


@wrong("attend", "they see the future")
def no_mask(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_head: int) -> Any:
    return _attention(q, k, v, n_head, mask="none")


@wrong("attend", "There are NaNs")
def masks_itself(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_head: int) -> Any:
    return _attention(q, k, v, n_head, diagonal=0)


@wrong("attend", "The scores are not scaled")
def not_scaled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_head: int) -> Any:
    return _attention(q, k, v, n_head, per="nothing")


@wrong("attend", "You divided by √C")
def scaled_by_the_width(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_head: int) -> Any:
    return _attention(q, k, v, n_head, per="model")


@wrong("attend", "The heads are mixed up")
def heads_by_view_alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_head: int) -> Any:
    return _attention(q, k, v, n_head, split="view")


@wrong("layer_norm", "divides by n - 1")
def unbiased(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> Any:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias


@wrong("layer_norm", "Normalize each position by itself")
def over_positions(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> Any:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + eps).sqrt() * weight + bias


@wrong("layer_norm", "Normalize each position by itself")
def over_everything(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> Any:
    return (x - x.mean()) / (x.var(correction=0) + eps).sqrt() * weight + bias


@wrong("layer_norm", "it is an RMSNorm")
def rms_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> Any:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


@wrong("layer_norm", "eps belongs inside the root")
def eps_outside(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> Any:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, correction=0) + eps) * weight + bias


def _counted(n_layer: int, C: int, V: int, N: int, head: int = 0, biases: int = 1, positions: int = 1) -> int:
    matrices = 12 * C * C + biases * 9 * C
    return (1 + head) * V * C + positions * N * C + n_layer * (matrices + 4 * C) + 2 * C


@wrong("count_parameters", "The output head is counted on its own")
def head_not_tied(n_layer: int, n_embd: int, vocab_size: int, block_size: int) -> Any:
    return _counted(n_layer, n_embd, vocab_size, block_size, head=1)


@wrong("count_parameters", "have biases, too")
def without_biases(n_layer: int, n_embd: int, vocab_size: int, block_size: int) -> Any:
    return _counted(n_layer, n_embd, vocab_size, block_size, biases=0)


@wrong("count_parameters", "The position embedding is missing")
def without_positions(n_layer: int, n_embd: int, vocab_size: int, block_size: int) -> Any:
    return _counted(n_layer, n_embd, vocab_size, block_size, positions=0)


@wrong("count_parameters", "which mixes the heads' results")
def without_the_output_of_attention(n_layer: int, n_embd: int, vocab_size: int, block_size: int) -> Any:
    return _counted(n_layer, n_embd, vocab_size, block_size) - n_layer * (n_embd**2 + n_embd)
