"""A text with each token coloured by its loss, as an HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from groundling.escape import printable
from groundling.evaluation.score import Score
from groundling.evaluation.token_losses import TokenLoss
from groundling.reporting.html import render

_SHADES = 10


def loss_page(
    title: str, beginning: str, losses: Sequence[TokenLoss], score: Score, n_tokens: int, vocab_size: int
) -> str:
    """The page: figures, then the coloured text.

    `score` and `n_tokens` are of the whole text, while `losses` may cover only its first part. `beginning` is the first
    token, which has no loss. The darkest shade is a loss of log(vocab_size), that of random guessing, or more. Tokens
    that end inside a character are coloured together with those that complete it.
    """
    units = _units(losses)
    ceiling = math.log(max(vocab_size, 2))
    shown = "all tokens" if len(losses) + 1 == n_tokens else f"the first {len(losses):,} of {n_tokens:,} tokens"
    figures = [
        ("loss, nats per token", f"{score.loss:.4f}"),
        ("perplexity", f"{score.perplexity:.3f}"),
        ("bits per character", f"{score.bits_per_character:.4f}"),
        ("bits per byte", f"{score.bits_per_byte:.4f}"),
        ("windows", score.protocol),
        ("tokens scored", f"{score.tokens:,}"),
        ("shown", shown),
    ]
    return render(
        "reporting/token_loss_page.html", "reporting/token_loss_page.js",
        title=title, figures=figures, shades=_SHADES, ceiling=ceiling, beginning=beginning,
        painted=[(text, min(int(_SHADES * loss / ceiling), _SHADES)) for text, loss, *_ in units],
        data=[[round(loss, 4), n, choices] for _, loss, n, choices in units],
    )  # fmt: skip


def _units(losses: Sequence[TokenLoss]) -> list[tuple[str, float, int, list[list[Any]]]]:
    """Text, loss, number of tokens, and the first token's choices of each piece that can be shown."""
    units, pending = [], list[TokenLoss]()
    for each in losses:
        pending.append(each)
        if each.text or each is losses[-1]:
            choices = [[_visible_text(text), round(share, 4)] for text, share in pending[0].choices]
            units.append((each.text, sum(part.loss for part in pending), len(pending), choices))
            pending = []
    return units


def _visible_text(text: str) -> str:
    return printable(text).replace("\n", "↵").replace("\t", "→").replace(" ", "␣")
