"""Examples painted token by token: what the model only reads, what it learns, and what is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from groundling.data.conversations import Row
from groundling.data.examples import Kind, most_tokens, rendered
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.escape import printable

State = Literal["read", "learned", "cut"]
_LONGEST_CHARACTER = 4  # bytes


@dataclass(frozen=True)
class PaintedToken:
    """A token, or the few that make up one character."""

    text: str
    state: State
    ids: tuple[int, ...]


@dataclass(frozen=True)
class PaintedExample:
    """The example of a row, or the two of a pair: chosen, then rejected."""

    place: str
    sides: tuple[tuple[PaintedToken, ...], ...]


def paint(row: Row, kind: Kind, tokenizer: ChatTokenizer, block_size: int) -> PaintedExample:
    """The tokens that training makes of a row, with those that do not fit."""
    size = most_tokens(kind, block_size)
    sides = (_painted(ids, learned, size, tokenizer) for ids, learned in rendered(row, kind, tokenizer))
    return PaintedExample(row.place, tuple(sides))


def _painted(
    ids: Sequence[int], learned: Sequence[bool], size: int, tokenizer: ChatTokenizer
) -> tuple[PaintedToken, ...]:
    states: list[State] = ["cut" if i >= size else "learned" if each else "read" for i, each in enumerate(learned)]
    painted, pending = list[PaintedToken](), list[int]()
    for i, id in enumerate(ids):
        pending.append(id)
        text = tokenizer.decode_with_markup(pending)
        goes_on = i + 1 < len(ids) and states[i + 1] == states[i] and len(pending) < _LONGEST_CHARACTER
        if text.endswith("\ufffd") and goes_on:
            continue  # it ends inside a character
        painted.append(PaintedToken(printable(text).replace("\n", "⏎\n"), states[i], tuple(pending)))
        pending = []
    return tuple(painted)
