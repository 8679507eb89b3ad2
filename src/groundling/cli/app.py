"""The app that all commands belong to, and what they share: flags and printing."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from groundling import __version__
from groundling.escape import escape_json, printable

if TYPE_CHECKING:
    from rich.table import Table

app = App(
    name="groundling",
    help="Train a language model from scratch, on your own machine.",
    version=f"groundling {__version__}",
    help_format="plaintext",  # rendering Markdown would cost a fifth of the time to answer
    help_epilogue="Add --debug to any command to see a traceback when it fails.",
    default_parameter=Parameter(negative_bool=()),  # no --no-json
)

Json = Annotated[bool, Parameter(help="Print JSON to standard output.")]
Out = Annotated[Path | None, Parameter(help="Folder for runs. Default: $GROUNDLING_RUNS, or ./runs.")]
Precision = Annotated[
    Literal["float32", "bfloat16", "int8"],
    Parameter(help="Weight precision. bfloat16 and int8 generate faster but are slightly less accurate."),
]
RunReference = Annotated[str, Parameter(name="RUN", help="A run's name, or the path of a run or a checkpoint.")]
Unknown = Annotated[
    Literal["error", "skip"], Parameter(help="What to do with characters that the model has never seen.")
]
Text = Parameter(allow_leading_hyphen=True, show_default=False)


def print_rows(rows: list[tuple[str, Any]]) -> None:
    width = max(len(label) for label, _ in rows) + 2
    for label, text in rows:
        print(f"{label:{width}}{printable(str(text))}")


def print_table(table: Table) -> None:
    """Print a table: as wide as the terminal, or in full where there is none."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    console.print(table)


def print_json(value: Any) -> None:
    print(escape_json(jsonlib.dumps(value, indent=1, ensure_ascii=False)))


def tee(pieces: Iterable[str]) -> Iterator[str]:
    """Print each piece of text and pass it on, like the Unix command."""
    # A terminal obeys control characters, and a stranger's model may generate any. A file gets them as they are.
    shown = printable if sys.stdout.isatty() else str
    for piece in pieces:
        print(shown(piece), end="", flush=True)
        yield piece


def note(sentence: str) -> None:
    print(f"note: {printable(sentence)}", file=sys.stderr)
