"""The cross-entropy of the next tokens, whole or a few positions at a time.

The logits of 16,384 positions over GPT-2's 50,257 tokens take 3.3 GB in float32, several times over with their
gradients. In chunks, a few positions compute their logits, their part of the loss and its gradients, and free the
logits again. The gradients wait for the backward pass, so no product is computed twice. (PyTorch's own
`linear_cross_entropy` multiplies in float32 on CPUs, and torch.compile cannot fuse what it does between the products.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

LARGE_VOCABULARY = 32_768
"""From here on, chunks take a fifth of the memory on a CPU, in about the same time (docs/benchmarks.md). A GPU
always uses them."""
_CHUNK = {"cpu": 1 << 24, "cuda": 1 << 27}  # logits at once
_MULTIPLE = {"cuda": 64}  # the matrix units of a GPU want each row of logits to begin at a multiple of 128 bytes


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The mean of -log p of each target, over its weight: logits (B, T, V), targets and weights (B, T) -> a scalar."""
    logits, targets = logits.float().flatten(0, 1), targets.flatten()
    if weights is None:
        return F.cross_entropy(logits, targets)
    weights = weights.flatten()
    losses = F.cross_entropy(logits, targets, reduction="none") * weights
    return losses.sum() / weights.sum().clamp(min=1e-9)


def in_chunks(x: torch.Tensor, head: torch.Tensor) -> bool:
    """Whether the loss of the residual stream `x` is computed in chunks. Not if ranks share the head (see
    parallel/tensor.py): each has the logits of a part of the vocabulary."""
    return not hasattr(head, "full_tensor") and (x.device.type == "cuda" or len(head) >= LARGE_VOCABULARY)


def chunked_cross_entropy(
    x: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """`cross_entropy(F.linear(x, head), targets, weights)`: x is (B, T, C), head (V, C)."""
    x, targets = x.flatten(0, 1), targets.flatten()
    if weights is None:
        shares = torch.full(targets.shape, 1 / len(targets), device=x.device)
    else:
        shares = (weights / weights.sum().clamp(min=1e-9)).flatten()
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        nats: torch.Tensor = _ChunkedCrossEntropy.apply(x, head, targets, shares, dtype, torch.is_grad_enabled())
    return nats


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of -log p of each target times its share. Products are computed in `dtype`, all else in float32.

    Shapes: x is (N, C), head (V, C), targets and shares (N,).
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, shares: torch.Tensor,
        dtype: torch.dtype, learns: bool,
    ) -> torch.Tensor:  # fmt: skip
        (N, _), V, kind = x.shape, len(head), x.device.type
        rows, fill = max(1, _CHUNK.get(kind, _CHUNK["cpu"]) // V), -V % _MULTIPLE.get(kind, 1)
        head = F.pad(head.to(dtype), (0, 0, 0, fill)) if fill else head.to(dtype)
        nats = torch.zeros((), device=x.device)
        d_x: list[torch.Tensor] = []
        d_head = torch.zeros_like(head, dtype=torch.float32) if learns and ctx.needs_input_grad[1] else None
        for part, target, share in zip(x.to(dtype).split(rows), targets.split(rows), shares.split(rows), strict=True):
            target, share = target[:, None], share[:, None]
            logits = (part @ head.mT).float()
            if fill:
                logits[:, V:].fill_(-torch.inf)  # no tokens
            logs = logits.log_softmax(1)
            nats = nats - (logs.gather(1, target) * share).sum()
            if learns:
                error = logs.exp_().scatter_add_(1, target, torch.full_like(share, -1)).to(dtype)
                d_x.append((error @ head).float() * share)
                if d_head is not None:  # times N, since float16 could not hold a single share
                    d_head += error.mT @ (part * (N * share)).to(dtype)
        if learns:
            ctx.save_for_backward(torch.cat(d_x), None if d_head is None else d_head[:V] / N)
        return nats

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_x, d_head = ctx.saved_tensors
        return d_x * grads[0], None if d_head is None else d_head * grads[0], None, None, None, None
