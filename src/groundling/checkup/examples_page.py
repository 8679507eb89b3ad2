"""The check-up of examples in words: rows for the terminal, and an HTML page."""

from __future__ import annotations

from groundling.checkup.examples import METHODS, NOUNS, ExamplesReport
from groundling.reporting.html import render


def rows(report: ExamplesReport) -> list[tuple[str, str]]:
    """The figures, each with its name."""
    noun, lengths = NOUNS[report.kind], report.lengths
    room = f"{'half of ' * (report.kind == 'prompts')}the context of {report.context:,}"
    verb = "left out" if report.kind == "prompts" else "cut"
    fit = f"{lengths.cut:,} do not fit into {room} and are {verb}" if lengths.cut else f"all fit into {room}"
    roles = ", ".join(f"{role} {n:,}" for role, n in report.roles.items())
    found = [
        ("data", f"{report.name}: {report.rows:,} {noun}{'s' * (report.rows != 1)}"),
        ("fields", ", ".join(report.fields)),
        ("split", f"{report.training:,} for training, {report.validation:,} for validation"),
        ("left out", f"{report.left_out:,}"),
        ("lengths", f"median {lengths.median:,} tokens, longest {lengths.longest:,}; {fit}"),
        ("tokens", f"{report.tokens:,}" + (f", {report.learned:.0%} learned" if report.kind != "prompts" else "")),
        ("turns", f"{roles}; the assistant has at most {report.turns:,} in a {noun}"),
    ]  # fmt: skip
    if pairs := report.pairs:
        found.append(
            ("replies", f"median {pairs.median_chosen:,} tokens chosen, {pairs.median_rejected:,} rejected; the longer "
                        f"one is the chosen one in {pairs.longer_wins:.0%}")
        )  # fmt: skip
    if report.calls:
        found.append(("tool calls", ", ".join(f"{name} {n:,}" for name, n in report.calls.items())))
    size = f"{report.batch_size:,} {noun}s, the default of `{METHODS[report.kind]}`"
    return [*found, ("epoch", f"{report.steps_per_epoch:,} steps of {size}")]


def page(report: ExamplesReport, run: str) -> str:
    """The page. Everything that comes from the data is escaped."""
    return render("checkup/examples_page.html", report=report, run=run, rows=rows(report))
