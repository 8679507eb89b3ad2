"""Commands about runs: runs, explain, plot, report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from groundling.cli.app import Json, Out, RunReference, app, print_json, print_table
from groundling.escape import command, printable


@app.command(sort_key=4)
def runs(*, tree: Annotated[bool, Parameter(negative="")] = False, out: Out = None, json: Json = False) -> None:
    """List your runs.

    Args:
        tree: Show which run was trained from which.
    """
    from groundling.run.family import family
    from groundling.run.folder import runs_folder
    from groundling.run.store import runs

    rows = runs(out)
    if json:
        return print_json(family(rows) if tree else rows)
    if not rows:
        start = command("train", *([] if out is None else ["--out", out]))
        print(f"There are no runs in {printable(str(runs_folder(out)))} yet. Start one with `{start}`.")
        return None
    return _print_tree(family(rows)) if tree else _print_list(rows)


def _print_list(rows: list[dict[str, Any]]) -> None:
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    is_tuned = any(row["task"] not in (None, "pretraining") for row in rows)
    score = "best score" if is_tuned else "best validation loss"
    table = Table(box=None, pad_edge=False)
    for title in ("run", *(["task"] if is_tuned else []), "corpus", "preset", "step", score, "status"):
        justify: Any = "right" if title in ("step", "best validation loss") else "left"
        table.add_column(title, justify=justify, no_wrap=title == "run")
    keys = ("name", *(["task"] if is_tuned else []), "corpus", "preset")
    for row in rows:
        steps = "?" if row["steps"] is None else f"{row['steps']:,}"
        table.add_row(
            *(Text(printable(row[key] or "?")) for key in keys), f"{row['step']:,}/{steps}", _best(row, is_tuned),
            row["status"],
        )  # fmt: skip
    width = (90 if is_tuned else 70) + max(cell_len(row["name"]) for row in rows)  # a name is for copying: never cut it
    print_table(table, width=width)


def _best(row: dict[str, Any], with_metric: bool) -> str:
    from groundling.reporting.figures import shown
    from groundling.training.events import VALIDATION_LOSS

    best, metric = row["best_validation_loss"], row["metric"] or VALIDATION_LOSS
    if best is None:
        return "-"
    return f"{metric + ' ' if with_metric else ''}{shown(metric, best)} at {row['best_step']:,}"


def _print_tree(roots: list[dict[str, Any]]) -> None:
    from rich.tree import Tree

    top = Tree("", hide_root=True, guide_style="dim")
    for node in roots:
        _add_to_tree(top, node)
    print_table(top, width=200)


def _add_to_tree(parent: Any, node: dict[str, Any]) -> None:
    from rich.text import Text

    about = [node["task"] or "?"]
    if node["status"] == "gone":
        about.append("gone")
    else:
        about += [f"step {node['step']:,}", f"best {_best(node, True)}"] if node["step"] else [node["status"]]
    about += [f"{role}: {other['run']}" + (" (gone)" if other["gone"] else "") for role, other in node["uses"].items()]
    branch = parent.add(Text(printable(node["name"]), "bold").append(printable(f"  {' · '.join(about)}"), "not bold"))
    for child in node["children"]:
        _add_to_tree(branch, child)


@app.command(sort_key=5)
def explain(run: RunReference, /, *, out: Out = None, json: Json = False) -> None:
    """Explain how a run went: how good its loss is, what is wrong, how you can tell, and what to do."""
    from groundling.reporting.figures import best_of
    from groundling.run.store import load
    from groundling.training.events import VALIDATION_LOSS

    found = load(run, out=out).explain()
    if json:
        return print_json(found)
    if found["best_score"] is not None:
        where = f": {found['standing']}" if found["standing"] else ""
        unit = " nats per token" if found["metric"] == VALIDATION_LOSS else ""
        print(f"{best_of(found['metric'], found['best_score'])}{unit}{where}.")
    for n, loss in enumerate(found["milestones"]):
        print(f"  {'chance' if n == 0 else f'{n}-gram':8}{loss:.3f}")
    if not found["findings"]:
        print("No problems found." if found["step"] else "No step was made yet.")
    if not found["findings"] or found["metric"] != VALIDATION_LOSS:
        print(found["outcome"])
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
