"""The check-up as one HTML page."""

from __future__ import annotations

from typing import Any

from groundling.checkup.findings import findings
from groundling.checkup.report import Report
from groundling.checkup.text import said
from groundling.reporting.html import render


def page(report: Report) -> str:
    """The page. Whatever comes from the text is escaped: a corpus may hold anything."""
    return render(
        "checkup/page.html",
        report=report,
        findings=findings(report),
        chart=_chart(report),
        said=said,
        shown=shown,
    )


def shown(character: str) -> str:
    """`character` as something that can be seen: control and other invisible ones by their number."""
    return character if character.isprintable() and character != " " else f"U+{ord(character):04X}"


def _chart(report: Report) -> dict[str, Any]:
    """Bars for the milestones, in per cent of the uniform model's loss."""
    models = report.milestones.models
    highest = max(model.loss for model in models) or 1.0
    return {"rows": [(model, 100 * model.loss / highest) for model in models], "best": report.milestones.best}
