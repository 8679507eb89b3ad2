"""attend(): causal attention over PyTorch's fused kernels, the same for training, prefill and decoding.

There is no dropout on the attention weights: with it, PyTorch's fused CPU kernel refuses and all T × T
weights are written out, which costs more than the rest of the block. Dropout acts on embeddings and on
the residual branches instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q kᵀ / √hd) v, where each query sees the keys up to its own position.

    Args:
        q: (B, nh, T, hd), the newest T positions.
        k, v: (B, nkv, S, hd), all S ≥ T positions up to and including them. Where there are fewer of them
            than queries, nh / nkv neighbouring queries share one (Ainslie et al., "GQA", 2023).

    Returns: (B, nh, T, hd)
    """
    T, S = q.size(2), k.size(2)
    shared = q.size(1) != k.size(1)
    if T == S:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
    if T == 1:  # the newest position sees everything
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=shared)
    visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=shared)
