"""Commands about this machine: doctor, selftest."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from groundling.cli.app import Json, app, print_json, print_rows

if TYPE_CHECKING:
    from groundling.experiments.selftest import SelftestResult


@app.command(sort_key=6)
def doctor(*, class_: Annotated[bool, Parameter(name="--class")] = False, json: Json = False) -> int | None:
    """Show what this machine offers and what groundling uses of it.

    Args:
        class_: Check instead whether it is ready for the course, and how long each chapter computes.
    """
    from groundling.machine import survey

    if class_:
        return _ready_for_class(json)

    found = survey()
    if json:
        print_json(found)
        return None
    cpu, memory = found["cpu"], found["memory"]
    compiler = "no C++ compiler found"
    if found["compiler_found"]:
        compiler = "C++ compiler found. torch.compile is used for runs that are long enough to benefit."
    speeds = ", ".join(f"{speed:,} GFLOP/s in {name}" for name, speed in cpu["matmul_gflops"].items())
    print_rows([
        ("device", found["device"]),
        ("dtype", found["dtype"]),
        ("compile", compiler),
        ("threads", found["threads"]),
        ("CPU", f"{cpu['name']}, {cpu['cores']} cores; matrix products {speeds}"),
        ("speed", f"{found['speed']['gflops']:,} GFLOP/s in a small model's matrix products ({found['dtype']}), "
                  f"{found['speed']['gbytes']:,} GB/s memory copies"),
        *(("GPU", f"{gpu['name']}, {gpu['memory'] / 1e9:.0f} GB") for gpu in found["gpus"]),
        ("memory", f"{memory['total'] / 1e9:.1f} GB, {memory['available'] / 1e9:.1f} GB free"),
        ("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
        ("system", found["system"]),
        *(("reason", reason) for reason in found["reasons"]),
    ])  # fmt: skip
    return None


def _ready_for_class(json: bool) -> int:
    from groundling.course.chapter import chapters
    from groundling.course.preflight import preflight

    found = preflight()
    if json:
        print_json(dataclasses.asdict(found))
    else:
        rows = [("a training step", f"works (loss {found.loss:.2f})")]
        for number, minutes in found.minutes.items():
            time = "not measured" if minutes is None else f"{minutes:.1f} minutes of computing"
            rows.append((f"chapter {number}", f"{time}: {chapters()[number].title}"))
        print_rows([*rows, *(("problem", problem) for problem in found.problems)])
        print("Not ready." if found.problems else "Ready for the course: groundling course")
    return 1 if found.problems else 0


@app.command(sort_key=8)
def selftest(*, kills: int = 50, seed: int | None = None, json: Json = False) -> int:
    """Check that no run is lost on this machine: train a tiny model, kill it at random moments, resume it each time,
    and compare the result with an undisturbed run, bit for bit.

    Args:
        kills: How many times to kill it.
        seed: Repeats the kills. Default: a random seed, which is shown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from groundling.experiments.selftest import selftest

    columns = ("kills", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True), "left")
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=kills)
        found = selftest(kills=kills, seed=seed, progress=lambda done, _: bar.update(task, completed=done))
    if json:
        print_json(dataclasses.asdict(found))
    else:
        _show_selftest(found)
    return 1 if found.difference else 0


def _show_selftest(found: SelftestResult) -> None:
    phases = ", ".join(f"{phase} {kills}" for phase, kills in found.by_phase.items())
    disk = f"{found.at_operations:,} at a disk operation, {found.half_written:,} of them halfway through a write"
    what = f"{found.tensors:,} tensors and values, {found.losses:,} logged losses, {found.batches:,} batches"
    print_rows([
        ("kills", f"{found.kills:,} (seed {found.seed}): {phases}"),
        ("", f"{disk}; {found.new_interpreters:,} in a new interpreter"),
        ("resumes", f"{found.resumes:,}, in {found.runs:,} run(s)"),
        ("compared", f"each run with an undisturbed one: {what}"),
        ("time", f"{found.seconds:.0f} s"),
    ])  # fmt: skip
    print()
    if found.difference:
        print(f"FAILED. {found.difference}\nThe runs are in {found.folder}.")
    else:
        print("Nothing was lost. All runs are equal to the bit.")
