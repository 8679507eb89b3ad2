"""The checks of chapter 6."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from groundling.course.checks import expect, expect_close

_LOGITS = [2.0, -1.0, 0.5, 3.0, -4.0, 1.5, 0.0]
_MULTIPLIED = (
    "A high temperature makes the distribution sharper, a low one flatter: divide the logits by it, do not multiply."
)


def token_probabilities(answer: Callable[..., Any]) -> None:
    import torch

    logits = torch.tensor(_LOGITS)

    def of(temperature: float, **limits: Any) -> torch.Tensor:
        p = answer(logits.clone(), temperature, **limits)
        expect(p is not None, "token_probabilities returns nothing. Is the `return` missing?")
        p = torch.as_tensor(p, dtype=torch.float64)
        expect(p.shape == logits.shape, f"Probabilities of 7 tokens need the shape (7,), not {tuple(p.shape)}.")
        return p

    expect_close("At temperature 1 without limits, softmax", of(1), logits.softmax(0))
    hot = (logits * 2).softmax(0)
    expect(not torch.allclose(of(2).float(), hot, atol=1e-4), _MULTIPLIED)
    log = of(1).log() / 2
    powers = logits.softmax(0) / 2
    expect(
        not torch.allclose(of(2).float(), powers, atol=1e-4),
        "The temperature divides the logits, before the softmax. Probabilities that are divided no longer sum to 1.",
    )
    expect_close("At temperature 2, the distribution", of(2), log.softmax(0), 1e-4)
    _greedy(of)
    top = of(1, top_k=3)
    kept = sorted(top.nonzero().flatten().tolist())
    expect(kept == [0, 3, 5], f"top_k=3 should keep the three most likely tokens, 0, 3 and 5, not {kept}.")
    expect(
        abs(float(top.sum()) - 1) < 1e-4,
        f"After top_k the probabilities sum to {float(top.sum()):.3f}: divide by their sum, so that it is 1 again.",
    )
    _nucleus(of)
    for temperature, top_k, top_p in ((0.7, 50, 1.0), (1.5, 4, 0.8), (0.3, 0, 0.95), (1.0, 5, 0.5), (2.0, 2, 1.0)):
        name = f"At temperature {temperature}, top_k {top_k}, top_p {top_p}, the distribution"
        hint = "top_k comes first, and top_p looks at the probabilities after it."
        expect_close(name, of(temperature, top_k=top_k, top_p=top_p), _ours(temperature, top_k, top_p), 1e-5, hint)


def _greedy(of: Callable[..., Any]) -> None:
    import torch

    try:
        p = of(0)
    except ZeroDivisionError:
        p = torch.full((7,), torch.nan)
    expect(p.isfinite().all(), "At temperature 0 you divide by zero. It means greedy: the most likely token gets 1.")
    expect(p.argmax() == 3 and float(p[3]) == 1, "At temperature 0 the most likely token should get probability 1.")


def _nucleus(of: Callable[..., Any]) -> None:
    for top_p, wanted in ((0.7, [0, 3]), (0.5, [3])):  # token 3 alone has 0.563, with token 0 it is 0.770
        kept = sorted(of(1, top_p=top_p).nonzero().flatten().tolist())
        expect(
            kept,
            f"top_p={top_p} leaves no token. Keep a token if those before it sum to less: so the first stays.",
        )
        expect(
            kept != [3] or wanted == [3],
            "top_p=0.7 kept token 3 alone, which has 0.563. Keep the token with which the sum reaches 0.7, too.",
        )
        expect(kept == wanted, f"top_p={top_p} should keep the tokens {wanted}, not {kept}.")
    total = float(of(1, top_p=0.7).sum())
    expect(abs(total - 1) < 1e-4, f"After top_p the probabilities sum to {total:.3f}: divide by their sum.")


def _ours(temperature: float, top_k: int, top_p: float) -> Any:
    import numpy as np

    from groundling.config import Sampling
    from groundling.inference.sampling import probabilities

    settings = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=1)
    return probabilities(np.array([_LOGITS], dtype=np.float32), [settings])[0]


def draw(answer: Callable[..., Any]) -> None:
    import torch

    p = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])

    def of(u: float) -> int:
        token = answer(p.clone(), u)
        expect(token is not None, "draw returns nothing. Is the `return` missing?")
        return int(token)

    n = 20_000
    drawn = Counter(of((i + 0.5) / n) for i in range(0, n, 10))
    expect(len(drawn) > 1, f"Every u gives token {next(iter(drawn))}. That is greedy: u should decide.")
    expect(max(drawn) < len(p), f"Some u gives token {max(drawn)}, but there are only 0 to 5.")
    impossible = [token for token in drawn if p[token] == 0]
    expect(not impossible, f"Token {impossible} was drawn, but its probability is 0. Are you off by one?")
    shares = torch.tensor([drawn[token] / (n // 10) for token in range(len(p))])
    uniform = torch.tensor([0.0, 1, 0, 1, 1, 0]) / 3
    expect(not torch.allclose(shares, uniform, atol=0.01), "All possible tokens are drawn equally often: use p.")
    expect_close("With u evenly spread over [0, 1), the share of each token", shares, p, 2e-3)
    for u in (0.0, 1 - 2**-53):
        token = of(u)
        expect(
            0 <= token < len(p) and p[token] > 0,
            f"u = {u} gives token {token}, whose probability is 0. Take the first token whose sum is *larger* than u.",
        )


def repeated_share(answer: Callable[..., Any]) -> None:
    def of(ids: list[int], n: int) -> float:
        share = answer(list(ids), n)
        expect(share is not None, "repeated_share returns nothing. Is the `return` missing?")
        return float(share)

    expect(
        of([1, 2, 3, 4], 2) == 0, "Nothing is repeated in 1 2 3 4, so the share should be 0. Is it the other way round?"
    )
    share = of([1, 2, 1, 2, 1, 2], 2)  # 12 21 12 21 12: five spans, two kinds
    expect(
        abs(share - 1) > 1e-9,
        "The first occurrence of a span repeats nothing: of 12 21 12 21 12, three are repetitions, not five.",
    )
    expect(abs(share - 2 / 3) > 1e-9, "Spans overlap: 1 2 1 2 1 2 has five spans of length 2, not three.")
    expect(
        abs(share - 3 / 6) > 1e-9,
        "Divide by the number of spans, len(ids) - n + 1, not by the number of ids.",
    )
    expect_close("The share in 1 2 1 2 1 2 for n = 2", share, 3 / 5, 1e-9)
    expect_close("The share in 7 7 7 7 for n = 3", of([7, 7, 7, 7], 3), 1 / 2, 1e-9)
    expect(of([1, 2], 3) == 0, "A text shorter than n has no spans: its share is 0.")
