"""The page of a run: progress, curves, diagnosis, samples and resources."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
from nicegui import ui

from groundling.reporting.console import duration
from groundling.reporting.run_charts import FIGURE_CHARTS
from groundling.reporting.run_facts import Facts
from groundling.web.studio.live import Live
from groundling.web.studio.parts import Plot, Slide, Text, errors_shown, frame, heading, paragraph
from groundling.web.studio.processes import last_output
from groundling.web.studio.studio import Studio


def run_page(studio: Studio, name: str) -> None:
    """The page of the run `name`, or an error if there is none."""
    try:
        live = studio.live(name)
    except ValueError as error:
        with frame("Run not found"):
            Text("p", str(error))
        return
    with frame(name):
        RunPage(studio, live)


class RunPage:
    """Reads the run's files every second, and shows what is new."""

    def __init__(self, studio: Studio, live: Live) -> None:
        self.studio, self.live, self.shown, self.pausing = studio, live, -1, False
        name = live.folder.name
        self.origin = Text("p", "", "soft")
        self.status = Text("p", "", "state").props('role="status"')
        with Text("div", classes="bar"):
            self.pause = ui.button("Pause", on_click=self.pause_run)
            self.resume = ui.button("Resume", on_click=self.resume_run)
            self.minutes = ui.number("Total minutes", min=0.2, step=1).props("dense hide-bottom-space")
            self.minutes.classes("short")
            with Text("div", classes="bar") as self.uses:
                for label, page in (("Chat", "chat"), ("Generate text", "playground"), ("Look inside", "inside")):
                    target = f"/{page}?run={name}"
                    ui.button(label, on_click=lambda target=target: ui.navigate.to(target)).props("outline")
        self.progress = ui.linear_progress(0, show_value=False).props('aria-label="Progress"')
        self.figures = Text("div", classes="figures")
        self.log = Text("pre", "", "log")
        with Text("section") as self.body:
            self.plots = {key: Plot().classes("tall levels") for key in ("score", "loss")}
            self.ladder = Text("p", "Dashed lines are n-gram baselines: their loss on the validation part, from chance "
                               "to the best n-gram model.", "soft")  # fmt: skip
            with Text("div", classes="pair"):
                self.plots |= {key: Plot() for key in (*FIGURE_CHARTS, "small_loss", "rate", "speed")}
            heading("Diagnosis")
            self.diagnosis = Text("div")
            with Text("section") as self.replied:
                heading("Replies and their rewards", "Replies to the same prompt are compared with each other: those "
                        "with a higher reward become likelier.")  # fmt: skip
                self.rollouts = Rollouts()
            with Text("section") as self.sampled:
                heading("Samples", "Each uses the same prompt and seed. Copied spans are marked.")
                self.sample = Sample()
            heading("Resources")
            self.usage = Text("div", classes="figures")
        ui.timer(1.0, self.refresh)

    async def refresh(self) -> None:
        """Show what is new since the last call."""
        try:
            await asyncio.to_thread(self.live.refresh)
        except ValueError as error:
            self.status.set_text(str(error))
            return
        process = await asyncio.to_thread(self.studio.processes.training, self.live.folder)
        self.show_state(training=process is not None)
        self.show_usage(process)
        if self.live.version == self.shown:
            return
        self.shown = self.live.version
        facts = self.live.facts
        if facts is not None:
            charts = facts.charts
            for key, plot in self.plots.items():
                plot.show(charts.get(key), facts.last_step)
            self.show_diagnosis(facts)
            self.origin.set_text(facts.origin.sentence)
            self.sample.show(facts.slides)
            self.rollouts.show(rollouts := facts.rollouts)
            self.replied.set_visibility(bool(rollouts))
            self.sampled.set_visibility(not rollouts)
            show_figures(self.figures, facts.figures)
            self.ladder.set_visibility(bool(facts.ladder))

    def show_state(self, training: bool) -> None:
        """The run's state in words, and the buttons that apply to it."""
        live, facts = self.live, self.live.facts
        failure = None if training else self.studio.processes.failure(live.folder)
        finished = live.run.finished
        if failure:
            state = f"Stopped: {failure}"
        elif facts is None:
            state = "Starting: reading the text and measuring the machine." if training else "No step logged yet."
        elif training:
            _, step, position = facts.status.partition("step ")
            state = f"Training: {step}{position}" if step else "Training"
            if live.seconds_left is not None:
                state += f", {duration(live.seconds_left)} left"
        else:
            state = facts.status.capitalize()
        self.status.set_text(state)
        self.pausing = self.pausing and training
        self.pause.set_visibility(training)
        self.pause.set_enabled(not self.pausing)  # a second pause would quit at once
        self.resume.set_visibility(not training and live.run.exists)
        self.minutes.set_visibility(not training and finished)
        self.uses.set_visibility(bool(live.run.checkpoints.steps()))
        self.progress.set_visibility(training)
        self.progress.props["indeterminate"] = facts is None
        self.progress.value = self.share_done(finished)
        self.body.set_visibility(facts is not None)
        lines = last_output(live.folder) if facts is None else []
        self.log.set_text("\n".join(lines))
        self.log.set_visibility(bool(lines))

    def share_done(self, finished: bool) -> float:
        last, left = self.live.last, self.live.seconds_left
        if finished or last is None or left is None:
            return float(finished)
        return float(last["elapsed"] / max(last["elapsed"] + left, 1e-9))

    def show_diagnosis(self, facts: Facts) -> None:
        """How good the loss is, what is wrong, and what to do."""
        self.diagnosis.clear()
        with self.diagnosis:
            if facts.best is not None and facts.standing:
                Text("p", f"Best loss {facts.best['validation_loss']:.3f} nats per token: {facts.standing}.")
            for sentence in facts.generations:
                Text("p", sentence)
            if facts.is_tuned and facts.outcome:
                Text("p", facts.outcome)
            for finding in facts.findings:
                with Text("div", classes="finding"):
                    Text("b", finding.kind.capitalize())
                    paragraph(finding.evidence)
                    paragraph(finding.advice)
            if not facts.findings:
                verdict = facts.outcome if self.live.run.finished and not facts.is_tuned else ""
                Text("p", f"No problems found. {verdict}".strip() if facts.evaluations else "Too early to tell.")

    def show_usage(self, process: psutil.Process | None) -> None:
        """What the run and the whole machine use now."""
        memory = psutil.virtual_memory()
        rows = list[tuple[str, str]]()
        if process is not None:
            try:
                with process.oneshot():
                    used, load = process.memory_info().rss, process.cpu_percent()
            except psutil.Error:
                used, load = 0, 0.0
            rows += [(f"{used / 1e9:.2f} GB", "memory of this run"), (f"{load / 100:.1f}", "cores used by this run")]
        elif (result := self.live.run.result) is not None:
            rows.append((f"{result['peak_memory'] / 1e9:.2f} GB", "peak memory of this run"))
        rows.append((f"{memory.available / 1e9:.1f} GB", f"of {memory.total / 1e9:.1f} GB memory free"))
        rows.append((f"{psutil.cpu_percent():.0f} %", f"CPU load ({psutil.cpu_count()} cores)"))
        show_figures(self.usage, rows)

    async def pause_run(self) -> None:
        with errors_shown():
            self.studio.processes.pause(self.live.folder)
            self.pausing = True
            ui.notify("Pausing: the run finishes its step and saves everything.")
            await self.refresh()

    async def resume_run(self) -> None:
        with errors_shown():
            finished = self.live.run.finished
            if finished and not self.minutes.value:
                raise ValueError("This run is finished. To train it further, enter the total minutes.")
            self.studio.resume(self.live.folder.name, self.minutes.value if finished else None)
            await self.refresh()


class Timeline:
    """What a model wrote during training, with a slider through time. It follows the newest until you move it."""

    none = "Nothing yet."

    def __init__(self) -> None:
        self.slides: list[dict[str, Any]] = []
        with Text("div", classes="card") as self.card:
            self.slider = Slide("Training time", 0, 0, 1, 0, self.draw)
            self.caption = Text("p", "", "soft")
            self.text = Text("div")
        self.nothing = Text("p", self.none, "soft")

    def show(self, slides: list[dict[str, Any]]) -> None:
        """Replace the slides."""
        newest = self.slider.value >= len(self.slides) - 1
        self.slides = slides
        self.card.set_visibility(bool(slides))
        self.nothing.set_visibility(not slides)
        if slides:
            last = len(slides) - 1
            self.slider.place(last if newest else self.slider.value, last)
            self.draw()

    def draw(self) -> None:
        """Show the slide at the slider's position."""
        slide = self.slides[int(self.slider.value)]
        self.caption.set_text(slide["said"])
        self.text.clear()
        with self.text:
            self.fill(slide)

    def fill(self, slide: dict[str, Any]) -> None:
        raise NotImplementedError


class Sample(Timeline):
    """Samples from training."""

    none = "No samples yet."

    def __init__(self) -> None:
        super().__init__()
        self.text.classes("sample").props("dir=auto")

    def fill(self, slide: dict[str, Any]) -> None:
        Text("span", slide["prompt"], "soft")
        for piece, mark in slide["pieces"]:
            Text("mark" if mark else "span", piece, "two" if mark == 2 else "")


class Rollouts(Timeline):
    """Groups of replies, each with its reward."""

    def fill(self, slide: dict[str, Any]) -> None:
        for group in slide["groups"]:
            with Text("div", classes="group"):
                Text("p", group["prompt"], "prompt").props("dir=auto")
                for reward, text, share in group["replies"]:
                    with Text("p", classes="reply"):
                        Text("b", reward).style(f"--share: {share}")
                        Text("span", text).props("dir=auto")


def show_figures(box: Text, rows: list[tuple[str, str]]) -> None:
    """Cards with a value and what it is. Reuses the cards if their number did not change."""
    if len(list(box)) != len(rows):
        box.clear()
        with box:
            for _ in rows:
                with Text("div"):
                    Text("b")
                    Text("span")
    for card, row in zip(box, rows, strict=True):
        for part, text in zip(card, row, strict=True):
            assert isinstance(part, Text)
            part.set_text(text)
