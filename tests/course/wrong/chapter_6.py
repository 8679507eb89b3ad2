"""Wrong answers to the exercises of chapter 6."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from groundling.course.solutions.chapter_6 import token_probabilities as right
from wrong import wrong


@wrong("token_probabilities", "do not multiply")
def multiplied(logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Any:
    return right(logits * temperature, 1, top_k, top_p)


@wrong("token_probabilities", "divides the logits, before the softmax")
def probabilities_divided(logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Any:
    return right(logits, 1, top_k, top_p) / temperature


@wrong("token_probabilities", "At temperature 0 you divide by zero")
def no_greedy(logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Any:
    return right(logits, temperature, top_k, top_p) if temperature else (logits / temperature).softmax(0)


@wrong("token_probabilities", "After top_k the probabilities sum to")
def not_normalized(logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Any:
    p = right(logits, temperature, 0, top_p)
    return p.masked_fill(p < p.topk(top_k).values[-1], 0) if top_k else p


@wrong("token_probabilities", "Keep the token with which the sum reaches 0.7, too")
def cuts_the_token_that_reaches_it(
    logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Any:  # fmt: skip
    p, order = right(logits, temperature, top_k).sort(descending=True)
    if top_p < 1:
        p[1:][p.cumsum(0)[1:] > top_p] = 0
    kept = torch.zeros_like(p).scatter(0, order, p)
    return kept / kept.sum()


@wrong("draw", "That is greedy")
def most_likely(p: torch.Tensor, u: float) -> Any:
    return p.argmax()


@wrong("draw", "Are you off by one?")
def one_too_far(p: torch.Tensor, u: float) -> Any:
    return int((p.cumsum(0) <= u).sum()) - 1


@wrong("draw", "the first token whose sum is *larger* than u")
def impossible_at_zero(p: torch.Tensor, u: float) -> Any:
    return int((p.double().cumsum(0) < u).sum())


@wrong("draw", "All possible tokens are drawn equally often")
def evenly(p: torch.Tensor, u: float) -> Any:
    possible = p.nonzero().flatten()
    return possible[int(u * len(possible))]


@wrong("repeated_share", "The first occurrence of a span repeats nothing")
def all_that_occur_twice(ids: list[int], n: int) -> Any:
    spans = Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
    return sum(count for count in spans.values() if count > 1) / max(sum(spans.values()), 1)


@wrong("repeated_share", "Spans overlap")
def side_by_side(ids: list[int], n: int) -> Any:
    spans = [tuple(ids[i : i + n]) for i in range(0, len(ids) - n + 1, n)]
    return 1 - len(set(spans)) / max(len(spans), 1)


@wrong("repeated_share", "the other way round")
def share_of_different_ones(ids: list[int], n: int) -> Any:
    spans = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(spans)) / max(len(spans), 1)


@wrong("repeated_share", "Divide by the number of spans")
def of_all_ids(ids: list[int], n: int) -> Any:
    spans = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return (len(spans) - len(set(spans))) / len(ids)
