"""The command selftest: try on your machine what groundling promises."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from groundling.cli.app import Json, app, print_json, print_lines

if TYPE_CHECKING:
    from groundling.experiments.selftest import SelftestResult


@app.command(sort_key=8)
def selftest(
    *, kills: int = 50, seed: Annotated[int | None, Parameter(show_default=False)] = None, json: Json = False
) -> int:
    """Check that no run is lost on this machine: train a tiny model, kill it at random moments, resume it each time,
    and compare the result with an undisturbed run, bit for bit.

    Parameters
    ----------
    kills
        How many times to kill it.
    seed
        Repeats the kills. Default: a random seed, which is shown.
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


def _show(found: SelftestResult) -> None:
    phases = ", ".join(f"{phase} {kills}" for phase, kills in found.by_phase.items())
    disk = f"{found.at_operations:,} at a disk operation, {found.half_written:,} of them halfway through a write"
    what = f"{found.tensors:,} tensors and values, {found.losses:,} logged losses, {found.batches:,} batches"
    print_lines(
        [
            ("kills", f"{found.kills:,} (seed {found.seed}): {phases}"),
            ("", f"{disk}; {found.new_interpreters:,} in a new interpreter"),
            ("resumes", f"{found.resumes:,}, in {found.runs:,} run(s)"),
            ("compared", f"each run with an undisturbed one: {what}"),
            ("time", f"{found.seconds:.0f} s"),
        ]
    )
    print()
    if found.difference:
        print(f"FAILED. {found.difference}\nThe runs are in {found.folder}.")
    else:
        print("Nothing was lost. All runs are equal to the bit.")
