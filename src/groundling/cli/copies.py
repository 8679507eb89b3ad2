"""Show what a sample copied from the training text: figures, and the sample with its copied spans marked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from groundling.cli.app import note, print_rows
from groundling.escape import printable

if TYPE_CHECKING:
    from groundling.analysis.memorization import Originality, Span

_LARGE = 20_000_000  # bytes: indexing more takes seconds without progress
_SECONDS_PER_BYTE = 1e-7
_STYLES = ("black on bright_yellow", "black on bright_cyan")  # two: spans may touch
_SHOWN = 60  # characters of a long span


def indexing() -> Callable[[str, int, int], None]:
    """Progress of indexing a large training text, on standard error."""
    from groundling.reporting.console import Console
    from groundling.training.events import Preparing

    console = Console(sys.stderr)

    def tell(doing: str, done: int, total: int) -> None:
        console(Preparing(doing, done, total))
        if doing == "indexing" and total > _LARGE:
            note(f"Indexing {total / 1e6:,.0f} MB of training text, about {total * _SECONDS_PER_BYTE:,.0f} s")

    return tell


def show_originality(prompt: str, sample: str, found: Originality) -> None:
    """Print the figures and, if something was copied, the sample: colored on a terminal, in brackets elsewhere."""
    from rich.console import Console
    from rich.text import Text

    from groundling.analysis.memorization import COPIED, parts

    n = len(found.spans)
    copied = f"nothing: no span of {COPIED} characters or more"
    if n:
        copied = f"{found.share:.1%} of {found.characters:,} characters, in {n} span(s) of {COPIED} or more"
    print()
    print_rows([("longest verbatim span", _place(found.where)), ("copied", copied)])
    if not n:
        return
    console = Console(highlight=False, soft_wrap=True)
    coloured = console.color_system is not None and not console.no_color
    view, number = Text.assemble((printable(prompt), "dim")), 0
    for piece, span in parts(sample, found.spans):
        number += span is not None
        marked = printable(piece) if span is None or coloured else f"[{printable(piece)}]"
        view.append(marked, _STYLES[number % 2] if span else "")
    print()
    console.print(view)


def _place(span: Span | None) -> str:
    if span is None:
        return "none: the training text contains no character of it"
    shown = span.text if len(span.text) <= _SHOWN else span.text[: _SHOWN - 3] + "..."
    where = f"in line {span.line:,} of {span.document or 'the training text'}, from character {span.position:,} on"
    times = "" if span.times == 1 else f", the first of {span.times:,} times"
    return f"{span.stop - span.start:,} characters, {where}{times}: {shown!r}"
