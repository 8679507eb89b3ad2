"""attend(): causal attention, by the fastest way that the machine has; the same for training, prefill and decoding.

There is no dropout on the attention weights: with it, PyTorch's fused CPU kernel refuses and all T × T
weights are written out, which costs more than the rest of the block. Dropout acts on embeddings and on
the residual branches instead.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

_LONGEST = 2048  # tokens: the weights of a longer context, written out, would fill the memory


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(q kᵀ / √hd) v, where each query sees the keys up to its own position.

    Args:
        q: (B, nh, T, hd), the newest T positions.
        k, v: (B, nkv, S, hd), all S ≥ T positions up to and including them. Where there are fewer of them
            than queries, nh / nkv neighbouring queries share one (Ainslie et al., "GQA", 2023).
        visible: (B or 1, 1, T, S), added to the scores: -inf where a query does not see a key, for rows at different
            positions. If None, T is S, or 1, and the newest query sees everything.

    Returns: (B, nh, T, hd)
    """
    T, S = q.size(2), k.size(2)
    shared = q.size(1) != k.size(1)
    if visible is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=shared)
    if T == S:
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and T <= _LONGEST:
            return _in_strips(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
    assert T == 1
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=shared)


def _in_strips(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same for T = S, with plain matrix products in place of the fused kernel."""
    B, nh, T, hd = q.shape
    k, v = (x.repeat_interleave(nh // x.size(1), dim=1).reshape(B * nh, T, hd) for x in (k, v))
    y: torch.Tensor = _Strips.apply(q.reshape(B * nh, T, hd), k, v)
    return y.view(B, nh, T, hd)


class _Strips(torch.autograd.Function):
    """A strip of queries after the other, each beside the keys that it sees and no later ones.

    On CPUs with bfloat16 instructions plain matrix products leave PyTorch's fused kernel behind, and do so twice as
    fast once the future is skipped: docs/LOG.md has the measurements. The backward pass is written out because the
    automatic one transposes the keys' gradients element by element.

    Shapes: q, k and v are (B nh, T, hd).
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Keeps the weights of all strips, (B nh, rows, end), for the way back."""
        T = q.size(1)
        position = torch.arange(T, device=q.device)
        scaled = q * (1 / math.sqrt(q.size(2)))
        weights = []
        for start, end in _strips(T):
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
        for (start, end), w in zip(_strips(T), weights, strict=True):
            d_y = grads[0][:, start:end].contiguous()
            d_scores = torch._softmax_backward_data(d_y @ v[:, :end].mT, w, -1, w.dtype)
            d_q.append(d_scores @ k[:, :end] * (1 / math.sqrt(k.size(2))))
            d_k.append(d_scores.mT @ scaled[:, start:end].contiguous())
            d_v.append(w.mT @ d_y)
        return torch.cat(d_q, dim=1), _sum_of_beginnings(d_k), _sum_of_beginnings(d_v)


def _strips(T: int) -> list[tuple[int, int]]:
    rows = max(64, T // 8)  # fewer rows skip more of the future, but make the products too small
    return [(start, min(start + rows, T)) for start in range(0, T, rows)]


def _sum_of_beginnings(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum of (N, end, hd) for growing ends: each reaches from the first position to the end of its strip."""
    strips = _strips(parts[-1].size(1))
    sums = []
    for i, (start, end) in enumerate(strips):
        total = parts[i][:, start:end]
        for later in parts[i + 1 :]:
            total = total + later[:, start:end]
        sums.append(total)
    return torch.cat(sums, dim=1)
