"""The verb that tries the promises on the user's machine: selftest."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from groundling.cli.app import Json, app, print_json, print_lines

if TYPE_CHECKING:
    from groundling.experiments.selftest import Found


@app.command(sort_key=8)
def selftest(
    *, kills: int = 50, seed: Annotated[int | None, Parameter(show_default=False)] = None, json: Json = False
) -> int:
    """Train a tiny model in a temporary folder, kill it at random moments, continue it each time, and compare it with
    one that was left alone, bit for bit.

    Parameters
    ----------
    kills
        How many times it is killed.
    seed
        Repeats the kills; drawn and shown if not given.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from groundling.experiments.selftest import selftest

    columns = ("kills", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True), "left")
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=kills)
        found = selftest(kills=kills, seed=seed, progress=lambda done, _: bar.update(task, completed=done))
    if json:
        print_json(dataclasses.asdict(found))
    else:
        _show(found)
    return 1 if found.difference else 0


def _show(found: Found) -> None:
    struck = ", ".join(f"{phase} {kills}" for phase, kills in found.struck.items())
    disk = f"{found.at_operations:,} at an operation on the disk, {found.half_written:,} of them half-way through it"
    what = f"{found.tensors:,} tensors and values, {found.losses:,} lines of losses, {found.batches:,} batches"
    print_lines(
        [
            ("kills", f"{found.kills:,} (seed {found.seed}): {struck}"),
            ("", f"{disk}; {found.fresh:,} of new interpreters"),
            ("resumes", f"{found.resumes:,}, in {found.runs:,} run(s)"),
            ("compared", f"each run with one that was left alone: {what}"),
            ("time", f"{found.seconds:.0f} s"),
        ]
    )
    print()
    if found.difference:
        print(f"FAILED. {found.difference}\nThe runs are kept in {found.folder}.")
    else:
        print("Nothing was lost, and all is equal to the bit.")
