"""The page of a run: where it is, its curves, what they say, what it writes, and what it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
from nicegui import ui

from groundling.reporting.console import duration
from groundling.reporting.run_facts import Facts
from groundling.web.studio.live import Live
from groundling.web.studio.parts import Plot, Slide, Text, frame, heading, told
from groundling.web.studio.processes import said
from groundling.web.studio.studio import Studio


def run_page(studio: Studio, name: str) -> None:
    """Raises ValueError if there is no run of that name."""
    live = studio.live(name)
    with frame(name):
        RunPage(studio, live)


class RunPage:
    """Looks at the run's files every second, and shows what is new."""

    def __init__(self, studio: Studio, live: Live) -> None:
        self.studio, self.live, self.shown, self.pausing = studio, live, -1, False
        name = live.folder.name
        self.status = Text("p", "", "state").props('role="status"')
        with Text("div", classes="bar"):
            self.pause = ui.button("Pause", on_click=self.pause_run).props("unelevated no-caps")
            self.resume = ui.button("Go on", on_click=self.resume_run).props("unelevated no-caps")
            self.minutes = (
                ui.number("Minutes in all", min=0.2, step=1).props("outlined dense hide-bottom-space").classes("short")
            )
            self.uses = Text("div", classes="bar")
            with self.uses:
                ui.button("Let it write", on_click=lambda: ui.navigate.to(f"/playground?run={name}")).props(
                    "outline no-caps"
                )
                ui.button("Look inside", on_click=lambda: ui.navigate.to(f"/inside?run={name}")).props(
                    "outline no-caps"
                )
        self.progress = ui.linear_progress(0, show_value=False).props('aria-label="Progress"')
        self.figures = Text("div", classes="figures")
        self.log = Text("pre", "", "log")
        with Text("section") as self.body:
            self.loss = Plot(classes="tall levels")
            self.ladder = Text("p", "Dashed lines are what models that only count reach on the validation part, from "
                               "chance to the best n-gram model.", "soft")  # fmt: skip
            with Text("div", classes="pair"):
                self.rate, self.speed = Plot(), Plot()
            heading("How it goes")
            self.words = Text("div")
            heading("What it writes", "From the same prompt and seed each time. Copied spans are marked.")
            self.sample = Sample()
            heading("What it takes")
            self.takes = Text("div", classes="figures")
        ui.timer(1.0, self.refresh)

    async def refresh(self) -> None:
        """Show what is new since the last time."""
        try:
            await asyncio.to_thread(self.live.refresh)
        except ValueError as error:
            self.status.set_text(str(error))
            return
        process = await asyncio.to_thread(self.studio.processes.training, self.live.folder)
        self.state(process)
        self.resources(process)
        if self.live.version == self.shown:
            return
        self.shown = self.live.version
        facts = self.live.facts
        if facts is not None:
            self.curves(facts.charts, facts.last_step)
            self.say(facts)
            self.sample.show(facts.slides)
            fill(self.figures, facts.figures)
            self.ladder.set_visibility(bool(facts.ladder))

    def state(self, process: psutil.Process | None) -> None:
        """Where it is, in words, and what can be done about it."""
        live, facts, training = self.live, self.live.facts, process is not None
        failure = None if training else self.studio.processes.failure(live.folder)
        finished = live.run.finished
        if failure:
            words = f"It stopped: {failure}"
        elif training and facts is None:
            words = "Starting: the text is read and the machine is measured."
        elif training and live.last is not None:
            left = live.seconds_left
            words = f"Training: {facts.status.split(': ')[-1]}" if facts else "Training"
            words = words.replace("last logged at ", "") + (f", {duration(left)} left" if left is not None else "")
        else:
            words = (facts.status if facts else "Nothing is logged yet.").capitalize()
        self.status.set_text(words)
        self.pausing = self.pausing and training
        self.pause.set_visibility(training)
        self.pause.set_enabled(not self.pausing)  # asked a second time, it would quit at once
        self.resume.set_visibility(not training and live.run.exists)
        self.minutes.set_visibility(not training and finished)
        self.uses.set_visibility(bool(live.run.checkpoints.steps()))
        self.progress.set_visibility(training)
        self.progress.props["indeterminate"] = facts is None
        self.progress.value = self.share(finished)
        self.body.set_visibility(facts is not None)
        lines = said(live.folder) if facts is None else []
        self.log.set_text("\n".join(lines))
        self.log.set_visibility(bool(lines))

    def share(self, finished: bool) -> float:
        """How much of it is done."""
        last, left = self.live.last, self.live.seconds_left
        if finished or last is None or left is None:
            return float(finished)
        return float(last["elapsed"] / max(last["elapsed"] + left, 1e-9))

    def curves(self, charts: dict[str, Any], last: int) -> None:
        for plot, key in ((self.loss, "loss"), (self.rate, "rate"), (self.speed, "speed")):
            plot.show(charts.get(key), last)

    def say(self, facts: Facts) -> None:
        """What the curves say."""
        self.words.clear()
        with self.words:
            if facts.best is not None and facts.standing:
                Text("p", f"Its best loss, {facts.best['validation_loss']:.3f} nats a token, is {facts.standing}.")
            for sentence in facts.generations:
                Text("p", sentence)
            for finding in facts.findings:
                with Text("div", classes="finding"):
                    Text("b", finding.kind.capitalize())
                    Text("p", finding.evidence)
                    Text("p", finding.advice)
            if not facts.findings:
                verdict = facts.verdict if self.live.run.finished else ""
                Text("p", f"Nothing is wrong. {verdict}".strip() if facts.evaluations else "It is too early to say.")

    def resources(self, process: psutil.Process | None) -> None:
        """What the run, and all of the machine, uses just now."""
        memory = psutil.virtual_memory()
        rows = list[tuple[str, str]]()
        if process is not None:
            try:
                with process.oneshot():
                    used, load = process.memory_info().rss, process.cpu_percent()
            except psutil.Error:
                used, load = 0, 0.0
            rows += [(f"{used / 1e9:.2f} GB", "memory of this run"), (f"{load / 100:.1f}", "cores busy with it")]
        elif (result := self.live.run.result) is not None:
            rows.append((f"{result['peak_memory'] / 1e9:.2f} GB", "memory at its peak"))
        rows.append((f"{memory.available / 1e9:.1f} GB", f"free of the machine's {memory.total / 1e9:.1f}"))
        rows.append((f"{psutil.cpu_percent():.0f} %", f"of the machine's {psutil.cpu_count()} cores busy"))
        fill(self.takes, rows)

    async def pause_run(self) -> None:
        with told():
            self.studio.processes.pause(self.live.folder)
            self.pausing = True
            ui.notify("It finishes its step, saves everything, and stops.")
            await self.refresh()

    async def resume_run(self) -> None:
        with told():
            minutes = self.minutes.value if self.live.run.finished else None
            if self.live.run.finished and not minutes:
                raise ValueError("It has come to its end: say how many minutes it is to take in all.")
            self.studio.resume(self.live.folder.name, minutes)
            await self.refresh()


class Sample:
    """What the model wrote on the way, with a slider through time. It stays with the newest until it is moved."""

    def __init__(self) -> None:
        self.slides: list[dict[str, Any]] = []
        with Text("div", classes="card") as self.card:
            self.slider = Slide("Training time", 0, 0, 1, 0, self.draw)
            self.said = Text("p", "", "soft")
            self.text = Text("div", classes="sample").props("dir=auto")
        self.none = Text("p", "Nothing yet.", "soft")

    def show(self, slides: list[dict[str, Any]]) -> None:
        """Take the samples that are there now."""
        newest = self.slider.value >= len(self.slides) - 1
        self.slides = slides
        self.card.set_visibility(bool(slides))
        self.none.set_visibility(not slides)
        if slides:
            last = len(slides) - 1
            self.slider.place(last if newest else self.slider.value, last)
            self.draw()

    def draw(self) -> None:
        """Show the sample that the slider is at."""
        if not self.slides:
            return
        slide = self.slides[min(int(self.slider.value), len(self.slides) - 1)]
        self.said.set_text(slide["said"])
        self.text.clear()
        with self.text:
            Text("span", slide["prompt"], "soft")
            for piece, mark in slide["pieces"]:
                Text("mark" if mark else "span", piece, "two" if mark == 2 else "")


def fill(box: Text, rows: list[tuple[str, str]]) -> None:
    """Figures: each a value and what it is. They are written over where they are as many as before."""
    cards = list(box)
    if len(cards) != len(rows):
        box.clear()
        with box:
            for value, what in rows:
                with Text("div"):
                    Text("b", value)
                    Text("span", what)
        return
    for card, (value, what) in zip(cards, rows, strict=True):
        bold, about = list(card)
        assert isinstance(bold, Text) and isinstance(about, Text)
        bold.set_text(value)
        about.set_text(what)
