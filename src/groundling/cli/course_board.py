"""The commands of the class competition: course submit, course board."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from groundling.cli.app import Json, RunReference, Text, note, print_json, print_rows, print_table
from groundling.cli.course import course
from groundling.cli.flags import with_settings
from groundling.config import user_path
from groundling.escape import command, printable

if TYPE_CHECKING:
    from groundling.course.board import Verdict
    from groundling.data.progress import Progress


@course.command(sort_key=4)
@with_settings("sampling")
def submit(
    run: RunReference,
    /,
    *,
    author: str,
    prompt: Annotated[str, Text] = "",
    max_new_tokens: int = 300,
    out: Path | None = None,
    **settings: Any,
) -> None:
    """Write a run and a poem of it into a folder, to hand in to the class competition.

    Args:
        author: Your name on the board.
        prompt: The beginning of the poem.
        max_new_tokens: Length of the poem, in tokens.
        out: The folder to create, or an existing one to create it in. Default: AUTHOR.submission, here.
    """
    from groundling.course.submission import read, submit
    from groundling.data.tokenizers.base import PromptWarning
    from groundling.run.store import load

    target = None if out is None else user_path("--out", out)
    with warnings.catch_warnings(record=True, action="always", category=PromptWarning) as caught:
        folder = submit(load(run), author, target, prompt, max_new_tokens, **settings)
    for warning in caught:
        note(str(warning.message))
    written = read(folder)
    print(printable(prompt + written.poem.text) + "\n")
    print_rows([
        ("submission", folder),
        ("bits per byte", f"{written.bits_per_byte:.4f} on the last tenth of the text"),
        ("seed", written.poem.sampling.seed),
        ("trained with", written.command),
    ])  # fmt: skip


@course.command(sort_key=5)
def board(
    folder: Annotated[Path, Parameter(name="FOLDER", help="The folder with the submissions.")],
    /,
    *,
    text: str = "shakespeare",
    retrain: bool = False,
    html: Path | None = None,
    json: Json = False,
) -> int:
    """Check all submissions and rank them by bits per byte.

    Each loss is measured and each poem is generated again. What was checked is remembered, so a board that you stop
    with Ctrl-C continues when you repeat the command.

    Args:
        text: The text of the competition: a file or anything that `groundling train` takes.
        retrain: Train each run again from its settings and seed, and compare the weights.
        html: Also write the board as one HTML page, with the poems.
    """
    from groundling import storage
    from groundling.course.board import Board, board_page, ranked, submissions

    place, page = user_path("FOLDER", folder), None if html is None else storage.output_file("--html", html)
    submissions(place)  # raises before the text is read
    verdicts, stopped = list["Verdict"](), False
    try:
        with _progress() as tell:
            found = Board(text, retrain, tell)
            for verdict in found.verdicts(place):
                verdicts.append(verdict)
    except KeyboardInterrupt:
        stopped = True
    if verdicts:
        verdicts = ranked(verdicts)
        if json:
            print_json([dataclasses.asdict(each) for each in verdicts])
        else:
            _print(verdicts)
        if page is not None:
            storage.write_file(page, board_page(verdicts, found.source.name).encode("utf-8", "replace"))
    if stopped:
        again = command(
            "course", "board", folder, *(["--text", text] if text != "shakespeare" else []),
            *(["--html", html] if html else []), *(["--retrain"] if retrain else []), *(["--json"] if json else []),
        )  # fmt: skip
        note(f"Stopped after {len(verdicts)} submission(s). Repeat the command to continue: `{again}`.")
    return 130 if stopped else 0


def _print(verdicts: Sequence[Verdict]) -> None:
    from rich.table import Table
    from rich.text import Text

    table, retrained = Table(box=None, pad_edge=False), any(each.training_verdict for each in verdicts)
    for title in ("", "author", "bits per byte", "loss", "poem", *(["trained again"] if retrained else []), "copied"):
        table.add_column(title, justify="right" if title in ("", "bits per byte") else "left", overflow="fold")
    for place, each in enumerate((each for each in verdicts if not each.refused), start=1):
        copied = each.copied_words + (f"; same weights as {each.same_as}" if each.same_as else "")
        training = [each.training_verdict] if retrained else []
        cells = (each.author, f"{each.bits_per_byte:.4f}", each.loss_verdict, each.poem_verdict, *training, copied)
        table.add_row(str(place), *(Text(printable(cell)) for cell in cells))
    if table.row_count:
        print_table(table)
    for each in verdicts:
        if each.refused:
            print(f"✗ {printable(each.author)} ({printable(each.path)}) is refused. {printable(each.refused)}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Bars with the time left on a terminal, and a line for each submission elsewhere."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "left")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        board, training = bars.add_task("reading the text", total=None), bars.add_task("", total=None, visible=False)

        def tell(doing: str, done: int, total: int) -> None:
            is_training = doing.startswith("training")
            task, shown = training if is_training else board, escape(printable(doing))
            bars.update(task, description=shown, completed=done, total=total, visible=True)
            if not is_training:
                bars.reset(training, visible=False)
                if not console.is_terminal and done < total:
                    print(f"{printable(doing)} ({done + 1} of {total})", file=sys.stderr)

        yield tell
