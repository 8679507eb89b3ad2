"""The commands of the course: course, course start, run, check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from groundling.cli.app import Json, app, note, print_json, print_rows, print_table
from groundling.escape import command, printable

if TYPE_CHECKING:
    from rich.table import Table

course = App(name="course", help="Learn how all of this works, in eight chapters.", help_format="plaintext", sort_key=9)
app.command(course)

Number = Annotated[int, Parameter(name="CHAPTER", help="The number of a chapter.")]
Folder = Annotated[Path, Parameter(help="Folder for your files of the course.")]


@course.default
def status(*, folder: Folder = Path("course"), json: Json = False) -> None:
    """List the chapters: what you have done, and how long each computes on this machine."""
    from groundling.config import user_path
    from groundling.course import progress
    from groundling.course.chapter import chapters
    from groundling.course.measured import minutes
    from groundling.machine import matmul_gflops

    folder = user_path("--folder", folder)
    known, gflops = progress.read(folder), matmul_gflops("float32")
    rows: list[dict[str, Any]] = [
        {
            "chapter": number,
            "title": chapter.title,
            "exercises": len(chapter.exercises),
            "passed": sum(name in known.passed for name in chapter.exercises),
            "minutes": minutes(number, gflops),
        }
        for number, chapter in chapters().items()
    ]
    if json:
        return print_json(rows)
    print_table(_table(rows))
    following = next((row["chapter"] for row in rows if row["passed"] < row["exercises"]), None)
    if following is None:
        return print("\nYou have passed every exercise.")
    started = (folder / f"chapter_{following}.py").exists()
    verb = "check" if started else "start"
    return print(f"\nNext: {_repeated(folder, verb, following)}")


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "chapter", "exercises", "minutes"):
        table.add_column(column, justify="right" if column == "minutes" else "left")
    for row in rows:
        done = "✓" if row["passed"] == row["exercises"] else " "
        time = "" if row["minutes"] is None else f"{row['minutes']:.1f}"
        table.add_row(done, f"{row['chapter']}. {row['title']}", f"{row['passed']} of {row['exercises']}", time)
    return table


def _repeated(folder: Path, verb: str, number: int) -> str:
    other = [] if folder == Path("course") else ["--folder", str(folder)]
    return command("course", verb, str(number), *other)


@course.command(sort_key=0)
def start(number: Number, /, *, folder: Folder = Path("course"), text: str | None = None) -> None:
    """Write a chapter as a page to read, and as a program and a notebook to run and change. Files of yours stay.

    Args:
        text: The text of the course, in place of Tiny Shakespeare: a file or anything that `groundling train` takes.
    """
    from groundling.config import user_path
    from groundling.course.folder import start
    from groundling.course.measured import minutes
    from groundling.machine import matmul_gflops

    program, notebook, page = start(user_path("--folder", folder), number, text and _absolute(text))
    rows = [("read", page), ("run and change", f"{program}, or {notebook}")]
    if (time := minutes(number, matmul_gflops("float32"))) is not None:
        rows.append(("computing", f"about {time:.0f} minutes on this machine" if time >= 1.5 else "about a minute"))
    print_rows(rows)
    print(f"\nRun it:   {_repeated(folder, 'run', number)}\nCheck it: {_repeated(folder, 'check', number)}")


def _absolute(text: str) -> str:
    """A text's address that holds in the course's folder too. Raises an error with a sentence if there is no text."""
    from groundling.data.sources import find_source

    return find_source(text).addresses[0]


@course.command(sort_key=1)
def run(number: Number, /, *, folder: Folder = Path("course")) -> int:
    """Run your file of a chapter: its listings with all that you changed, from top to bottom."""
    from groundling.config import user_path
    from groundling.course.folder import program_of

    path = program_of(user_path("--folder", folder), number)
    return subprocess.run([sys.executable, path.name], cwd=path.parent).returncode


@course.command(sort_key=2)
def check(number: Number, /, *, folder: Folder = Path("course"), file: Path | None = None, json: Json = False) -> int:
    """Check your answers to the exercises of a chapter.

    Args:
        file: The program or notebook with your answers. Default: the chapter's program in the folder.
    """
    from groundling.config import user_path
    from groundling.course.folder import check

    folder = user_path("--folder", folder)
    verdicts = dict(check(folder, number, file and user_path("--file", file)))
    if json:
        print_json(verdicts)
    else:
        for name, wrong in verdicts.items():
            print(f"{'✗' if wrong else '✓'} {name}{': ' + printable(wrong) if wrong else ''}")
    return 1 if any(verdicts.values()) else 0


@course.command(sort_key=3)
def bundle(
    folder: Annotated[Path, Parameter(name="FOLDER", help="The folder to create, for example on a USB stick.")],
    /,
    *,
    for_: Annotated[str, Parameter(name="--for")] = "linux,macos,windows",
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}",
    torch_index: str | None = None,
    runs: Path | None = None,
) -> None:
    """Write all that a class needs into one folder: wheels, text, chapters, finished runs. It installs without a
    network.

    Args:
        for_: The systems of the class.
        python: Their version of Python.
        torch_index: An index or a folder with builds of PyTorch for CPUs. Without it, wheels for Linux include CUDA,
            about 3 GB.
        runs: A folder of finished runs to hand out, such as course/runs.
    """
    from groundling.config import user_path
    from groundling.course.bundle import bundle

    place, finished = user_path("FOLDER", folder), runs and user_path("--runs", runs)
    folder = bundle(place, for_.split(","), python, torch_index, finished, note)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print_rows([("folder", folder), ("size", f"{size / 1e6:,.0f} MB"), ("read", folder / "START-HERE.txt")])
