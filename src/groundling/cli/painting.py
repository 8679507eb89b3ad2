"""Show examples token by token: what a model reads, what it learns, and what is cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from groundling.escape import printable

if TYPE_CHECKING:
    from rich.text import Text

    from groundling.checkup.painting import PaintedExample, PaintedToken

_STYLES = {
    "read": ("on grey19", "on grey27"),
    "learned": ("black on green3", "black on pale_green1"),
    "cut": ("black on indian_red", "black on light_coral"),
}
_START, _END = 240, 80  # tokens of a long span
_WIDTH = 100  # where there is no terminal


def show_painted(example: PaintedExample) -> None:
    """Print an example: a line for each span, with the tokens in two shades on a terminal. The two replies of a pair
    stand beside each other."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, emoji=False, soft_wrap=len(example.sides) == 1)
    console.print(f"\n{printable(example.place)}", markup=False)
    if len(example.sides) == 1:
        return console.print(_text(example.sides[0]))
    if not console.is_terminal:
        console.width = _WIDTH
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("chosen", "rejected"):
        table.add_column(f"  {title}", ratio=1, overflow="fold")
    table.add_row(*map(_text, example.sides))
    return console.print(table)


def _text(tokens: Sequence[PaintedToken]) -> Text:
    from rich.text import Text

    text = Text()
    for state, group in groupby(tokens, key=lambda token: token.state):
        span = list(group)
        text.append(f"  {state:9}")
        for i, token in enumerate(span):
            if len(span) > _START + _END and _START <= i < len(span) - _END:
                if i == _START:
                    text.append(f" … {len(span) - _START - _END:,} more … ", style="dim")
                continue
            first, *rest = token.text.split("\n")
            text.append(first, style=_STYLES[state][i % 2])
            for line in rest:
                if line or i + 1 < len(span):
                    text.append("\n" + " " * 11)
                text.append(line, style=_STYLES[state][i % 2])
        text.append("\n")
    text.rstrip()
    return text
