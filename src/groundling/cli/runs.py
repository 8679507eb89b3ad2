"""Commands about runs: runs, explain, plot, report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from groundling.cli.app import Json, Out, RunReference, app, print_json, print_table
from groundling.escape import command, printable


@app.command(sort_key=4)
def runs(*, out: Out = None, json: Json = False) -> None:
    """List your runs."""
    from groundling.run.folder import runs_folder
    from groundling.run.store import runs

    rows = runs(out)
    if json:
        return print_json(rows)
    if not rows:
        start = command("train", *([] if out is None else ["--out", out]))
        print(f"There are no runs in {printable(str(runs_folder(out)))} yet. Start one with `{start}`.")
        return None
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("run", "corpus", "preset", "step", "best validation loss", "status"):
        justify: Any = "right" if title in ("step", "best validation loss") else "left"
        table.add_column(title, justify=justify, no_wrap=title == "run")
    for row in rows:
        best = row["best_validation_loss"]
        steps = "?" if row["steps"] is None else f"{row['steps']:,}"
        table.add_row(
            *(Text(printable(row[key] or "?")) for key in ("name", "corpus", "preset")), f"{row['step']:,}/{steps}",
            "-" if best is None else f"{best:.4f} at {row['best_step']:,}", row["status"],
        )  # fmt: skip
    print_table(table, width=70 + max(cell_len(row["name"]) for row in rows))  # a name is for copying: never cut it
    return None


@app.command(sort_key=5)
def explain(run: RunReference, /, *, out: Out = None, json: Json = False) -> None:
    """Explain how a run went: how good its loss is, what is wrong, how you can tell, and what to do."""
    from groundling.run.store import load

    found = load(run, out=out).explain()
    if json:
        return print_json(found)
    if found["best_validation_loss"] is not None:
        where = f": {found['standing']}" if found["standing"] else ""
        print(f"Best validation loss {found['best_validation_loss']:.4f} nats per token{where}.")
    for n, loss in enumerate(found["milestones"]):
        print(f"  {'chance' if n == 0 else f'{n}-gram':8}{loss:.3f}")
    if not found["findings"]:
        print("No problems found." if found["step"] else "No step was made yet.")
        print(found["verdict"])
    for finding in found["findings"]:
        print(f"\n{finding['kind'].capitalize()}: {finding['evidence']}\n  {finding['advice']}")
    return None


@app.command(sort_key=5)
def plot(
    run: Annotated[list[str], Parameter(name="RUN", help="One or more runs, by name or path.", negative="")],
    /,
    *,
    to: Path | None = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Draw the loss curve of one run, or of several to compare.

    Args:
        to: The PNG file to write. Default: loss.png in the run's folder, or ./comparison.png for several runs.
    """
    from groundling import storage
    from groundling.reporting.plot import plot_curves
    from groundling.run.store import load

    loaded = [load(reference, out=out) for reference in run]
    if len(loaded) == 1:
        path = loaded[0].plot(to)
    else:
        path = storage.output_file("--to", to or "comparison.png")
        plot_curves({each.name: each.metrics() for each in loaded}, path)
    _print_path(path, json)


@app.command(sort_key=5)
def report(run: RunReference, /, *, to: Path | None = None, out: Out = None, json: Json = False) -> None:
    """Write an HTML report of a run: curves, diagnosis, samples over time and what they copied, text, plan, settings
    and machine. It is one file that needs no network.

    Args:
        to: The HTML file to write. Default: report.html in the run's folder.
    """
    from groundling.run.store import load

    _print_path(load(run, out=out).report(to), json)


def _print_path(path: Path, json: bool) -> None:
    if json:
        print_json({"file": str(path)})
    else:
        print(os.path.relpath(path))
