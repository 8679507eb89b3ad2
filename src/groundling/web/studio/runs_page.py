"""The first page: all runs, and a chart that compares several."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from nicegui import events, ui

from groundling.reporting.charts import drawn
from groundling.reporting.figures import brief
from groundling.training.events import VALIDATION_LOSS
from groundling.web.studio.charts import MEASURES, comparison
from groundling.web.studio.parts import Plot, Text, errors_shown, frame
from groundling.web.studio.studio import Studio

_STATUS = {"new": "starting", "unfinished": "paused or stopped"}


def runs_page(studio: Studio) -> None:
    with frame("Runs", "Runs"):
        RunsPage(studio)


class RunsPage:
    """The list of runs with its search, and the comparison of the selected runs."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.chosen: list[str] = []
        self.rows: dict[str, dict[str, Text]] = {}
        with Text("div", classes="bar"):
            self.search = ui.input("Search", on_change=self.refresh).props("dense clearable").classes("grow")
            ui.button("New run", on_click=lambda: ui.navigate.to("/new"))
        self.list = Text("div", classes="runs")
        self.empty = Text("p", "", "soft")
        with Text("section") as self.comparing:
            Text("h2", "Comparison")
            with Text("div", classes="bar"):
                self.measure = ui.select(list(MEASURES), value="bits per byte", label="Metric", on_change=self.compare)
                self.measure.props("dense")
                self.axis = ui.toggle({"step": "by step", "second": "by time"}, value="step", on_change=self.compare)
            self.plot = Plot().classes("tall")
            self.note = Text("p", "", "soft")
        ui.timer(2.0, self.refresh)

    async def refresh(self) -> None:
        """Show the runs as they are now."""
        with errors_shown():
            rows = await asyncio.to_thread(self.studio.runs)
            names = {row["name"] for row in rows}
            self.chosen = [name for name in self.chosen if name in names]
            words = (self.search.value or "").lower().split()
            found = [row for row in rows if all(w in f"{row['name']} {about_of(row)}".lower() for w in words)]
            if [row["name"] for row in found] != list(self.rows):
                self.rebuild(found)
            for row in found:
                self.fill(row)
            nothing = "No run matches." if rows else f"No runs in {self.studio.out} yet."
            self.empty.set_text("" if found else nothing)
            await self.compare()

    def rebuild(self, found: list[dict[str, Any]]) -> None:
        """Make a line for each run."""
        self.list.clear()
        self.rows = {}
        with self.list:
            for row in found:
                name = row["name"]
                with Text("div", classes="run"):
                    tick = ui.checkbox(value=name in self.chosen, on_change=partial(self.choose, name))
                    tick.props["aria-label"] = f"Compare {name}"
                    ui.link(name, f"/runs/{name}").classes("name")
                    self.rows[name] = {key: Text("span", classes=key) for key in ("about", "loss", "step", "status")}

    def fill(self, row: dict[str, Any]) -> None:
        """Show a run's figures in its line."""
        line, best, steps = self.rows[row["name"]], row["best_validation_loss"], row["steps"]
        about = "about " if row["minutes"] else ""
        line["about"].set_text(about_of(row))
        metric = row["metric"] or VALIDATION_LOSS
        score = f"loss {best:.3f}" if metric.endswith("loss") and best is not None else ""
        line["loss"].set_text("–" if best is None else score or f"{metric} {brief(metric, best)}")
        line["step"].set_text(f"step {row['step']:,}" + (f" of {about}{steps:,}" if steps else ""))
        line["status"].set_text(_STATUS.get(row["status"], row["status"]))
        line["status"].classes(replace=f"status {row['status']}")

    async def choose(self, name: str, event: events.ValueChangeEventArguments[bool | None]) -> None:
        """Add a run to the comparison, or remove it."""
        self.chosen = [each for each in self.chosen if each != name] + [name] * bool(event.value)
        await self.compare()

    async def compare(self) -> None:
        """Draw the selected runs on one chart."""
        self.comparing.set_visibility(bool(self.chosen))
        if not self.chosen:
            return
        with errors_shown():
            measure, axis = self.measure.value, self.axis.value
            chart, last, missing = await asyncio.to_thread(comparison, self.studio, self.chosen, measure, axis)
            self.plot.show(drawn(chart, last) if chart else None, last, axis)
            self.note.set_text(f"Nothing to draw yet: {', '.join(missing)}." if missing else "")


def about_of(row: dict[str, Any]) -> str:
    """What a run was trained on, and of a tuned one, from which run."""
    text = f"{row['corpus'] or '–'} · {row['preset'] or '–'}"
    if row["task"] in (None, "pretraining"):
        return text
    parent = f" of {row['lineage'][-1]['run']}" if row["lineage"] else ""
    return f"{row['task']}{parent} · {text}"
