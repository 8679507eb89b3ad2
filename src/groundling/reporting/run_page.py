"""The report of a run: one HTML file that opens from the disk, without a network."""

from __future__ import annotations

from groundling.reporting.html import render
from groundling.reporting.run_charts import FIGURE_CHARTS
from groundling.reporting.run_facts import Facts


def run_page(facts: Facts) -> str:
    """The page, below 2 MB however long the run. All text is escaped, since models repeat what they read."""
    charts = facts.charts
    readings = {key: {"readings": chart["readings"]} for key, chart in charts.items()}
    data = {"last": facts.last_step, "charts": readings, "slides": facts.slides, "rollouts": facts.rollouts}
    return render("reporting/run_page.html", "reporting/run_page.js", run=facts, charts=charts, data=data,
                  figure_charts=FIGURE_CHARTS)  # fmt: skip
