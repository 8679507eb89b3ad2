"""Commands about tokenizers: tokenizer train, show, compare, export."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from groundling.cli.app import Corpus, Json, Text, app, note, print_json, print_table
from groundling.cli.flags import with_settings

if TYPE_CHECKING:
    from groundling.data.tokenizers.base import Tokenizer

tokenizer = App(
    name="tokenizer", help="Train, show, compare and export tokenizers.", help_format="plaintext", sort_key=7
)
app.command(tokenizer)

Reference = Annotated[
    str, Parameter(name="FILE", help="A tokenizer's file or folder (groundling's, tokenizer.json, GPT-2's), or a run.")
]


@tokenizer.command(name="train", sort_key=0)
@with_settings("reading")
def train_(
    *corpus: Corpus,
    out: Path,
    kind: Literal["char", "byte", "bpe"] = "bpe",
    vocab_size: int = 4096,
    json: Json = False,
    **reading: Any,
) -> None:
    """Train a tokenizer on a text and save it, for `groundling train --tokenizer FILE`.

    Args:
        out: The file to write.
        kind: One token per character, one per byte, or pieces of words learned from the text.
        vocab_size: Vocabulary size of bpe, at most.
    """
    from groundling import storage
    from groundling.data.tokenizers.train import train_tokenizer
    from groundling.reporting.console import Console
    from groundling.training.events import reporters

    out = storage.output_file("--out", out)
    with Console(sys.stderr) as console:
        made = train_tokenizer(
            corpus, kind=kind, vocab_size=vocab_size, notice=note, progress=reporters(console)[1], **reading,
        )  # fmt: skip
    made.save(out)
    _print_saved(out, made, json)


@tokenizer.command(sort_key=1)
def show(file: Reference, /, *, text: Annotated[str, Text], json: Json = False) -> None:
    """Show the tokens of a text, with their ids.

    Args:
        text: The text to tokenize.
    """
    found = _find(file)
    if found.normalizer:
        note(found.normalizer_notice)
    ids = found.encode(text)
    pieces = [found.pieces[i] for i in ids]
    if json:
        tokens = [
            {"id": i, "text": _text(piece), "bytes": piece.hex(" ")} for i, piece in zip(ids, pieces, strict=True)
        ]
        return print_json({**_about(found), "characters": len(text), "tokens": tokens})
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text as Styled

    console = Console(highlight=False)
    if console.is_terminal:
        styles = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")
        coloured = [(_printable(piece), styles[i % len(styles)]) for i, piece in enumerate(pieces)]
        console.print(Styled.assemble(*coloured), "\n")
    table = Table(box=None, pad_edge=False)
    table.add_column("id", justify="right")
    table.add_column("piece")
    for i, piece in zip(ids, pieces, strict=True):
        table.add_row(str(i), Styled(_printable(piece)))
    print_table(table)
    print(f"{len(text):,} characters, {len(text.encode()):,} bytes, {len(ids):,} tokens of {found.vocab_size:,}")
    return None


@tokenizer.command(sort_key=2)
@with_settings("reading")
def compare(
    *corpus: Corpus,
    vocab_sizes: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (512, 2048, 8192),
    n_embd: int = 384,
    minutes: float | None = None,
    json: Json = False,
    **reading: Any,
) -> None:
    """Compare character, byte and BPE tokenizers on the same text. Default: shakespeare.

    Args:
        vocab_sizes: Vocabulary sizes to try for BPE.
        n_embd: Width for which the embedding's parameters are counted.
        minutes: Also train a model with each for this long, and show its bits per byte on the validation part.
    """
    from groundling.experiments.compare_tokenizers import compare_tokenizers
    from groundling.reporting.console import Console
    from groundling.training.events import reporters

    with Console(sys.stderr) as console:
        found = compare_tokenizers(
            corpus or None, vocab_sizes=vocab_sizes, n_embd=n_embd, minutes=minutes, notice=note,
            progress=reporters(console)[1], on_event=console, **reading,
        )  # fmt: skip
    if json:
        return print_json(found)
    _print_table(f"{found['corpus']}: {found['characters']:,} characters", found["tokenizers"], n_embd)
    print()
    workshop = [{"tokenizer": row["text"]} | row for row in found["workshop"]]
    _print_table(f"What a vocabulary costs in a model of 6 layers and width {n_embd}", workshop, n_embd)
    return None


@tokenizer.command(sort_key=3)
def export(file: Reference, /, *, out: Path, json: Json = False) -> None:
    """Export a tokenizer to Hugging Face's tokenizer.json. It gives the same ids.

    Args:
        out: The file to write.
    """
    from groundling import storage

    out = storage.output_file("--out", out)
    found = _find(file)
    storage.write_json(out, found.to_huggingface())
    _print_saved(out, found, json)


def _find(reference: str) -> Tokenizer:
    from groundling.data.tokenizers.base import Tokenizer

    path = Path(os.path.expanduser(reference))
    if path.exists():
        return Tokenizer.load(path)
    from groundling.run.store import load

    return load(reference).tokenizer


def _print_saved(out: Path, saved: Tokenizer, json: bool) -> None:
    if json:
        print_json({"file": str(out), **_about(saved)})
    else:
        print(f"{out}: {saved.kind}, {saved.vocab_size:,} tokens")


def _about(found: Tokenizer) -> dict[str, Any]:
    return {"kind": found.kind, "vocab_size": found.vocab_size, "fingerprint": found.fingerprint}


def _text(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None  # a part of a character


def _printable(piece: bytes) -> str:
    """The piece on one line. A part of a character is shown as its bytes."""
    text = _text(piece)
    if text is None:
        return "".join(f"<{byte:02X}>" for byte in piece)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _print_table(title: str, rows: Sequence[dict[str, Any]], n_embd: int) -> None:
    from rich.table import Table

    columns = {
        "tokenizer": ("tokenizer", "{}"),
        "vocabulary": ("tokens", "{:,}"),
        "characters_per_token": ("chars per\ntoken", "{:.2f}"),
        "embedding_parameters": (f"embedding\n({n_embd} wide)", "{:,}"),
        "embedding_share": ("of the\nmodel", "{:.1%}"),
        "bigrams_possible": ("pairs\npossible", "{:,}"),
        "bigrams_present": ("pairs\npresent", "{:,}"),
        "model_parameters": ("trained\nmodel", "{:,}"),
        "bits_per_byte": ("bits per\nbyte", "{:.4f}"),
    }
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    shown = [key for key in columns if key in rows[0]]
    for key in shown:
        table.add_column(columns[key][0], justify="left" if key == "tokenizer" else "right")
    for row in rows:
        table.add_row(*(columns[key][1].format(row[key]) for key in shown))
    print_table(table)
