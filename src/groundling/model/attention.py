"""Causal attention, one function for training, prefill and decoding. It picks the fastest method for the machine.

Attention weights have no dropout: with it, PyTorch does not use its fused CPU kernel, and writing out all T × T
weights costs more than the rest of the block. Dropout acts on embeddings and residual branches instead.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

_MAX_CHUNKED = 2048  # tokens: for a longer context, the weights of all chunks would fill the memory
_MULTIPLE = 64  # of a window's blocks, so that the kernels have whole vectors


def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None, window: int = 0
) -> torch.Tensor:
    """softmax(q kᵀ / √hd) v, where each query attends to the keys up to its own position.

    Args:
        q: (B, nh, T, hd), the newest T positions.
        k, v: (B, nkv, S, hd), all S ≥ T positions up to them. With fewer key than query heads, nh / nkv neighbouring
            queries share one (Ainslie et al., "GQA", 2023).
        attn_mask: (B or 1, 1, T, S), added to the scores: -inf where a query must not see a key. For rows at different
            positions. Without it T must be S or 1.
        window: each query attends to this many keys at most, the newest ones. 0: to all. A mask includes the window.

    Returns: (B, nh, T, hd)
    """
    T, S = q.size(2), k.size(2)
    shared = q.size(1) != k.size(1)
    if attn_mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, enable_gqa=shared)
    if T == S:
        if 0 < window < T:
            return _in_windows(q, k, v, window)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and T <= _MAX_CHUNKED:
            return _in_chunks(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
    assert T == 1
    k, v = k[:, :, -window:], v[:, :, -window:]  # all if it is 0
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=shared)


def _in_windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """The same for T = S > window. Queries are in blocks of at least a window, and each block attends to its own keys
    and those of the block before: time and memory grow with T, and not with its square."""
    if torch.compiler.is_exporting():  # other engines get a graph for any T
        return _newest(q, k, v, window)
    B, _, T, _ = q.shape
    size = -(-window // _MULTIPLE) * _MULTIPLE
    # (B, blocks, heads, size, hd)
    q, k, v = (F.pad(x, (0, 0, 0, -T % size)).unflatten(2, (-1, size)).transpose(1, 2) for x in (q, k, v))
    first = _newest(q[:, 0], k[:, 0], v[:, 0], window)
    k, v = (torch.cat((x[:, :-1], x[:, 1:]), dim=3).flatten(0, 1) for x in (k, v))
    others = _newest(q[:, 1:].flatten(0, 1), k, v, window).unflatten(0, (B, -1))
    return torch.cat((first[:, None], others), dim=1).transpose(1, 2).flatten(2, 3)[:, :, :T]


def _newest(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """Attention of the newest T of S positions, each to the `window` keys up to itself, with a mask (T, S)."""
    T, S = q.size(2), k.size(2)
    keys = torch.arange(S, device=q.device)
    distances = keys[S - T :, None] - keys
    mask = (distances >= 0) & (distances < window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.size(1) != k.size(1))


def _in_chunks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same for T = S, with plain matrix products instead of the fused kernel."""
    B, nh, T, hd = q.shape
    k, v = (x.repeat_interleave(nh // x.size(1), dim=1).reshape(B * nh, T, hd) for x in (k, v))
    y: torch.Tensor = _ChunkedCausalAttention.apply(q.reshape(B * nh, T, hd), k, v)
    return y.view(B, nh, T, hd)


class _ChunkedCausalAttention(torch.autograd.Function):
    """Attention in chunks of queries, each with the keys up to its end.

    On CPUs with bfloat16 instructions plain matrix products are faster than PyTorch's fused kernel, and skipping the
    future makes them twice as fast again (docs/LOG.md). The backward pass is written out because autograd would
    transpose the keys' gradients element by element.

    Shapes: q, k and v are (B nh, T, hd).
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Keeps the attention weights of all chunks, (B nh, rows, end), for the backward pass."""
        T = q.size(1)
        position = torch.arange(T, device=q.device)
        scaled = q * (1 / math.sqrt(q.size(2)))
        weights = []
        for start, end in _chunks(T):
            scores = scaled[:, start:end].contiguous() @ k[:, :end].mT
            future = position[:end] > position[start:end, None]
            weights.append(scores.masked_fill(future, -math.inf).softmax(-1))
        ctx.save_for_backward(scaled, k, v, *weights)
        return torch.cat([w @ v[:, : w.size(2)] for w in weights], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """With s = q kᵀ / √hd, w = softmax(s), y = w v:  dv = wᵀ dy,  ds = w ∘ (dw - Σ w ∘ dw) with dw = dy vᵀ."""
        scaled, k, v, *weights = ctx.saved_tensors
        T = k.size(1)
        d_q, d_k, d_v = [], [], []
        for (start, end), w in zip(_chunks(T), weights, strict=True):
            d_y = grads[0][:, start:end].contiguous()
            d_scores = torch._softmax_backward_data(d_y @ v[:, :end].mT, w, -1, w.dtype)
            d_q.append(d_scores @ k[:, :end] * (1 / math.sqrt(k.size(2))))
            d_k.append(d_scores.mT @ scaled[:, start:end].contiguous())
            d_v.append(w.mT @ d_y)
        return torch.cat(d_q, dim=1), _sum_of_prefixes(d_k), _sum_of_prefixes(d_v)


def _chunks(T: int) -> list[tuple[int, int]]:
    rows = max(64, T // 8)  # fewer rows skip more of the future, but make the products too small
    return [(start, min(start + rows, T)) for start in range(0, T, rows)]


def _sum_of_prefixes(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum of (N, end, hd) for growing ends: each part covers the positions up to the end of its chunk."""
    sums = []
    for i, (start, end) in enumerate(_chunks(parts[-1].size(1))):
        total = parts[i][:, start:end]
        for later in parts[i + 1 :]:
            total = total + later[:, start:end]
        sums.append(total)
    return torch.cat(sums, dim=1)
