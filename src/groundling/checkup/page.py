"""The check-up as one HTML page."""

from __future__ import annotations

from groundling.checkup.findings import findings
from groundling.checkup.report import Report
from groundling.checkup.text import said
from groundling.reporting.html import render


def page(report: Report) -> str:
    """The page. Everything that comes from the text is escaped: a corpus may contain anything."""
    return render("checkup/page.html", report=report, findings=findings(report), said=said)
