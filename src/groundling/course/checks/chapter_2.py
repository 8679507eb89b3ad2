"""The checks of chapter 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from groundling.course.checks import expect, expect_close


def cross_entropy(answer: Callable[..., Any]) -> None:
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(7, (40,), generator=generator)
    uniform = _number(answer(torch.zeros(40, 7), targets), "cross_entropy")
    expect(abs(uniform - math.log2(7)) > 1e-4, "Equal logits for 7 tokens cost ln 7 = 1.946 nats. You gave bits: log2.")
    expect(abs(uniform - 40 * math.log(7)) > 1e-3, "The loss is the mean over the targets, not their sum.")
    expect(uniform > 0, f"A loss is positive, but yours is {uniform:.4g}: take minus the logarithm.")
    expect_close(
        "The loss of equal logits", uniform, math.log(7), hint="For 7 tokens it is ln 7, whatever the targets."
    )
    logits = torch.randn(40, 7, generator=generator) * 3
    wanted = float(F.cross_entropy(logits, targets))
    mine = _number(answer(logits.clone(), targets), "cross_entropy")
    of_mean = float(-logits.softmax(-1)[torch.arange(40), targets].mean().log())
    expect(abs(mine - of_mean) > 1e-4, "Take the logarithm of each probability first, and the mean after it.")
    twice = float(F.cross_entropy(logits.softmax(-1), targets))
    expect(abs(mine - twice) > 1e-4, "Your softmax is applied twice: logits become probabilities once.")
    expect_close("The loss", mine, wanted, 1e-4)
    large = _number(answer(logits * 1000, targets), "cross_entropy")
    expect(
        math.isfinite(large),
        f"Logits of thousands give {large}: exp() overflows. Subtract the largest logit of each row first, which "
        "changes no probability.",
    )
    expect_close("The loss of large logits", large, float(F.cross_entropy(logits * 1000, targets)), 0.05)


def interpolate(answer: Callable[..., Any]) -> None:
    import numpy as np

    counts, shorter = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 2]]), np.array([0.4, 0.3, 0.2, 0.1])
    found = answer(counts.copy(), shorter.copy())
    expect(found is not None, "interpolate returns nothing. Is the `return` missing?")
    p = np.asarray(found, dtype=float)
    expect(p.shape == (3, 4), f"Three contexts and four tokens need the shape (3, 4), not {p.shape}.")
    expect(
        np.isfinite(p).all() and np.allclose(p[1], shorter),
        f"A context that was never seen should have the shorter model's probabilities, not {np.round(p[1], 3)}.",
    )
    expect((p > 0).all(), "A pair that was not seen has probability 0, so its loss is infinite: smooth it.")
    expect(not np.allclose(p.sum(0), 1), "The columns sum to 1. For each context, so in each row, they should.")
    expect(np.allclose(p.sum(-1), 1), f"Each row should sum to 1, but they sum to {np.round(p.sum(-1), 3)}.")
    expect(
        not np.isclose(p[0, 0], (3 + 1) / (4 + 4)),
        "You added 1 to each count. Add T(h) · shorter instead: rare tokens get less of it than frequent ones.",
    )
    expect(
        not np.isclose(p[0, 0], (3 + 4 * 0.4) / (4 + 4)),
        "T(h) is how many *different* tokens followed h: 2 in the first row, not 4.",
    )
    expect_close("The first row", p[0], (counts[0] + 2 * shorter) / 6)
    _as_groundling(answer)


def _as_groundling(answer: Callable[..., Any]) -> None:
    """Models of one, two and three tokens by the learner's function must have the losses of analysis/ngrams.py."""
    import numpy as np

    from groundling.analysis.ngrams import ngram_losses

    V = 5
    ids = np.random.default_rng(1).geometric(0.4, 600).clip(1, V) - 1
    train, validation = ids[:500], ids[500:]
    wanted = ngram_losses(_Ids(train), _Ids(validation), V, max_order=3)  # type: ignore[arg-type]
    p, losses = np.full(V, 1 / V), np.full(len(validation), np.log(V))
    for n in (1, 2, 3):
        p = np.asarray(answer(_counted(train, n, V), p), dtype=float)
        losses[n - 1 :] = -np.log(p[tuple(validation[i : len(validation) - n + 1 + i] for i in range(n))])
        expect_close(f"The loss of a {n}-gram model", losses.mean(), wanted[n], 1e-6)


def _counted(ids: Any, n: int, V: int) -> Any:
    import numpy as np

    table = np.zeros((V,) * n, dtype=int)
    np.add.at(table, tuple(ids[i : len(ids) - n + 1 + i] for i in range(n)), 1)
    return table


class _Ids:
    """Ids in memory, as `ngram_losses` reads them."""

    def __init__(self, ids: Any) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> Any:
        return self.ids[start:stop]


def to_bits_per_byte(answer: Callable[..., Any]) -> None:
    from groundling.analysis.ngrams import bits_per_byte

    text = "naïve ☃\n" * 4
    n_bytes = len(text.encode())
    byte = _number(answer(math.log(256), n_bytes, text), "to_bits_per_byte")
    expect(not math.isclose(byte, 8 * math.log(2) ** 2), "Nats become bits when *divided* by ln 2: a bit is smaller.")
    expect(not math.isclose(byte, 8 * math.log(2)), "The result is in nats: divide by ln 2 to get bits.")
    expect(
        not math.isclose(byte, 8 * n_bytes / len(text)),
        "You divided by characters. ï has two bytes and ☃ three: encode the text as UTF-8 and count.",
    )
    expect_close("A model that gives each byte 1/256 needs 8 bits a byte. Yours", byte, 8, 1e-9)
    mine = _number(answer(1.5, 10, text), "to_bits_per_byte")
    upside_down = 1.5 * n_bytes / 10 / math.log(2)
    expect(not math.isclose(mine, upside_down), "Tokens and bytes are upside down: fewer tokens need fewer bits.")
    expect_close("Bits per byte", mine, bits_per_byte(1.5, 10, n_bytes), 1e-9)
    pairs = _number(answer(2 * math.log(256), n_bytes // 2, text), "to_bits_per_byte")
    expect_close("Half as many tokens of twice the loss are the same model. Its bits per byte", pairs, 8, 1e-9)


def _number(value: Any, name: str) -> float:
    expect(value is not None, f"{name} returns nothing. Is the `return` missing?")
    size = value.numel() if hasattr(value, "numel") else 1
    expect(size == 1, f"{name} should return one number, not {size}: the mean over all targets.")
    return float(value)
