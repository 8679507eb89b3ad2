"""The app that all commands belong to, and what they share: flags and printing."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CoercionError, Parameter, convert

from groundling import __version__
from groundling.config import flag, setting_fields
from groundling.escape import escape_json, printable, unescaped

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree


def converted(type_: Any, tokens: Sequence[Any]) -> Any:
    """The value of an option from the words of the command line."""
    return convert(type_, tokens, converter=_leaf)


def _leaf(type_: Any, word: str) -> Any:
    if type_ is int:
        number = float(word) if "." in word else int(word)
        if number != int(number):  # cyclopts would round it
            raise ValueError
        return int(number)
    if issubclass(type_, Path):
        if not word:
            raise CoercionError(msg="The path is empty.", target_type=type_)
        return Path(os.path.expanduser(word))
    if type_ in (str, float):
        return type_(word)
    return convert(type_, [word])


def with_escapes(type_: Any, tokens: Sequence[Any]) -> Any:
    """Text in which \\n, \\t and \\\\ stand for a line break, a tab and a backslash, which shells do not replace."""
    return convert(type_, tokens, converter=lambda _, word: unescaped(word))


app = App(
    name="groundling",
    help="Train a language model from scratch, on your own machine.",
    version=f"groundling {__version__}",
    help_format="plaintext",  # rendering Markdown would cost a fifth of the time to answer
    help_epilogue="Add --debug to any command to see a traceback when it fails.",
    default_parameter=Parameter(negative=(), converter=converted),  # no --no-json and --empty-stop
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
Text = Parameter(allow_leading_hyphen=True, show_default=False, converter=with_escapes)


def no_option(_: Any, values: Any) -> None:
    """Refuse mistyped options, which would be files: only `-` and names of files may begin with a hyphen."""
    for word in values if isinstance(values, tuple) else [values]:
        if word.startswith("-") and word != "-" and not Path(word).exists():
            options = [flag(name) for name in setting_fields()]
            near = [] if word in options else get_close_matches(word, options, n=1)  # else it is one of `train` only
            raise ValueError(f"Unknown option: {word}." + "".join(f" Did you mean {option}?" for option in near))


Corpus = Annotated[
    str,
    Parameter(
        name="CORPUS",
        allow_leading_hyphen=True,
        validator=no_option,
        help="Text files, folders of them, zip files, - for standard input, shakespeare, or python-docs. Compressed "
        "files, JSON Lines, JSON, CSV and Parquet are recognized by their content.",
    ),
]


def print_rows(rows: list[tuple[str, Any]]) -> None:
    width = max(len(label) for label, _ in rows) + 2
    for label, text in rows:
        print(f"{label:{width}}{printable(str(text))}")


def print_table(table: Table | Tree, width: int = 0) -> None:
    """Print a table or a tree: as wide as the terminal, but at least `width`, or in full where there is none."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, width) if console.is_terminal else 1000
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
