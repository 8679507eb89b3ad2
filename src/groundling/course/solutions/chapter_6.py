"""Our answers to the exercises of chapter 6."""

from __future__ import annotations

import torch


def token_probabilities(logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
    p, order = (logits / temperature).softmax(dim=0).sort(descending=True)
    if top_k:
        p[top_k:] = 0
        p = p / p.sum()
    before = p.cumsum(dim=0) - p
    p[before >= top_p] = 0
    kept = torch.zeros_like(logits).scatter(0, order, p)
    return kept / kept.sum()


def draw(p: torch.Tensor, u: float) -> int:
    reached = p.double().cumsum(dim=0)
    return int((reached <= u * reached[-1]).sum())


def repeated_share(ids: list[int], n: int) -> float:
    spans = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(spans)) / len(spans) if spans else 0.0
