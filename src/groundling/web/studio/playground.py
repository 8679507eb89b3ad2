"""The playground: one or two models generate text, and each token shows its alternatives."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nicegui import ui

from groundling.analysis.memorization import Originality
from groundling.config import Sampling
from groundling.escape import printable
from groundling.run.run import Run
from groundling.web.studio.parts import Slide, Strip, Text, errors_shown, frame, knob
from groundling.web.studio.studio import Studio
from groundling.web.studio.writing import GeneratedToken, opened, training_text, write

_MAX_TOKENS = 2000
_MAX_PROMPT = 20_000  # characters
_NO_RUN = "none"
_UPDATE_SECONDS = 0.05  # how often new tokens appear


def playground(studio: Studio, name: str = "") -> None:
    """Prompt, sampling options, and one or two models. `name` is the run to start with."""
    with frame("Playground", "Playground"):
        names = studio.writers()
        if not names:
            Text("p", "No trained model yet. Start a run first.", "soft")
            return
        Playground(studio, names, name if name in names else names[0])


class Playground:
    """The prompt and the sampling options, shared by both models."""

    def __init__(self, studio: Studio, names: Sequence[str], first: str) -> None:
        with Text("div", classes="form"):
            self.prompt = ui.textarea("Prompt", value="").props(f"autogrow maxlength={_MAX_PROMPT}")
            with Text("div", classes="knobs"):
                self.options = {
                    "temperature": option("Temperature", 0.0, 2.0, 0.05, 0.7, "0: greedy"),
                    "top_k": option("Top k", 0, 200, 1, 50, "0: off"),
                }
                self.length = option("Max tokens", 10, _MAX_TOKENS, 10, 300)
                self.seed = ui.number("Seed (random if empty)", min=0, step=1, format="%d").props(
                    "dense hide-bottom-space"
                )
            with ui.expansion("More sampling options").props("dense"), Text("div", classes="knobs"):
                self.options |= {
                    "top_p": option("Top p", 0.05, 1.0, 0.05, 1.0, "1: off"),
                    "min_p": option("Min p", 0.0, 0.5, 0.01, 0.0, "0: off"),
                    "repetition_penalty": option("Repetition penalty", 1.0, 2.0, 0.05, 1.0, "1: off"),
                    "presence_penalty": option("Presence penalty", -2.0, 2.0, 0.1, 0.0, "0: off"),
                    "frequency_penalty": option("Frequency penalty", -2.0, 2.0, 0.1, 0.0, "0: off"),
                }
            with Text("div", classes="bar"):
                self.go = ui.button("Generate", on_click=self.write)
                self.halt = ui.button("Stop", on_click=self.stop).props("outline")
            Text("p", "Stronger color means less likely. Point at a token, or move to it with the arrow keys, to "
                 "see its alternatives. Pick one to continue from there. Underlined spans of 30 characters or more are "
                 "copied from the training text.", "soft")  # fmt: skip
        with Text("div", classes="pair"):
            self.columns = [Column(studio, names, first, self), Column(studio, [_NO_RUN, *names], _NO_RUN, self)]
        self.halt.set_visibility(False)

    def sampling(self) -> Sampling:
        """The settings that the sliders show. Raises ValueError if they are invalid."""
        values: dict[str, Any] = {name: slide.value for name, slide in self.options.items()}
        seed = None if self.seed.value is None else int(self.seed.value)
        return Sampling(**values | {"top_k": int(values["top_k"]), "seed": seed})

    async def write(self) -> None:
        with errors_shown():
            sampling = self.sampling()  # one seed for both
            await asyncio.gather(*(column.write(sampling) for column in self.columns if column.chosen))

    def stop(self) -> None:
        for column in self.columns:
            column.stop.set()

    def update_buttons(self) -> None:
        writing = any(column.writing for column in self.columns)
        self.halt.set_visibility(writing)
        self.go.set_enabled(not writing)


class Column:
    """One model and its text."""

    def __init__(self, studio: Studio, names: Sequence[str], chosen: str, desk: Playground) -> None:
        self.studio, self.desk = studio, desk
        self.tokens: list[GeneratedToken] = []
        self.stop, self.writing = threading.Event(), False
        self.before: list[int] = []
        self.prompt = ""
        second = names[0] == _NO_RUN
        with Text("section", classes="writer"):
            with Text("div", classes="bar"):
                self.name = ui.select(
                    list(names), value=chosen, label="Compare with" if second else "Run", on_change=self.list_steps
                ).props("dense").classes("grow")  # fmt: skip
                self.step = ui.select({0: "best"}, value=0, label="Checkpoint").props("dense").classes("short")
            self.strip = Strip("Generated text of the second model" if second else "Generated text", self.branch)
            self.status = Text("p", "", "soft").props('role="status"')
        self.list_steps()
        ui.context.client.on_disconnect(self.stop.set)

    @property
    def chosen(self) -> bool:
        return bool(self.name.value != _NO_RUN)

    def list_steps(self) -> None:
        """Offer the checkpoints of the chosen run."""
        for part in (self.step, self.strip, self.status):
            part.set_visibility(self.chosen)
        if self.chosen:
            with errors_shown():
                steps = self.studio.live(self.name.value).run.checkpoints.steps()
                self.step.set_options({0: "best"} | {step: f"step {step:,}" for step in reversed(steps)}, value=0)

    async def model(self) -> Run:
        return await asyncio.to_thread(opened, self.studio.folder(self.name.value), self.step.value or None)

    async def write(self, sampling: Sampling) -> None:
        """Generate from the prompt."""
        with errors_shown():
            self.prompt = (self.desk.prompt.value or "")[:_MAX_PROMPT]
            model = await self.model()
            self.before = model.prompt_ids(self.prompt)
            await self.generate(model, [], sampling)

    async def branch(self, at: int, choice: int) -> None:
        """Replace a token with one of its alternatives, and generate from there."""
        with errors_shown():
            if self.writing or not 0 <= at < len(self.tokens) or not 0 <= choice < len(self.tokens[at].choices):
                return
            old, taken = self.tokens[at], self.tokens[at].choices[choice]
            new = GeneratedToken(taken.token, taken.text, taken.probability, old.choices)
            await self.generate(await self.model(), [*self.tokens[:at], new], self.desk.sampling())

    async def generate(self, model: Run, kept: list[GeneratedToken], sampling: Sampling) -> None:
        """Continue after the tokens `kept`, showing new ones as they come."""
        self.tokens = list(kept)
        self.strip.begin(printable(self.prompt), [for_strip(token) for token in kept])
        self.status.set_text("")
        before = [*self.before, *(token.token for token in kept)]
        left = max(int(self.desk.length.value) - len(kept), 0)
        self.stop.clear()
        self.writing = True
        self.desk.update_buttons()
        try:
            tokens = write(model, before, sampling, left)
            while new := await asyncio.to_thread(next_tokens, tokens, self.stop, self.studio.closing):
                self.tokens += new
                self.strip.add([for_strip(token) for token in new])
        finally:
            self.writing = False
            self.desk.update_buttons()
        self.status.set_text(f"{len(self.tokens):,} tokens, seed {sampling.seed}")
        await self.mark(model.folder)

    async def mark(self, folder: Path) -> None:
        """Mark copied spans, or say why they are unknown: the training text may have changed or be gone."""
        try:
            text = await asyncio.to_thread(training_text, folder)
            found = await asyncio.to_thread(text.report, "".join(token.text for token in self.tokens))
        except (ValueError, OSError) as error:
            self.status.set_text(f"{self.status.text}. Cannot check for copies: {error}")
            return
        self.strip.mark_copied(copied_tokens(self.tokens, found))
        copied = f"{100 * found.share:.0f} % copied, longest copied span {found.longest:,} characters"
        self.status.set_text(f"{self.status.text}; {copied}")


def next_tokens(tokens: Iterator[GeneratedToken], *stops: threading.Event) -> list[GeneratedToken]:
    """The tokens of the next `_UPDATE_SECONDS`, at least one. Empty at the end, and once one of `stops` is set."""
    new, until = list[GeneratedToken](), time.monotonic() + _UPDATE_SECONDS
    for token in tokens:
        if any(stop.is_set() for stop in stops):
            break
        new.append(token)
        if time.monotonic() > until:
            break
    return new


def for_strip(token: GeneratedToken) -> list[Any]:
    choices = [[printable(choice.text), choice.probability] for choice in token.choices]
    return [printable(token.text), token.probability, choices]


def copied_tokens(tokens: Sequence[GeneratedToken], found: Originality) -> list[int]:
    """For each token 0 if it is not copied, else 1 or 2, alternating from span to span."""
    marks, start = list[int](), 0
    for token in tokens:
        stop = start + max(len(token.text), 1)
        inside = [n for n, span in enumerate(found.spans) if start < span.stop and span.start < stop]
        marks.append(1 + inside[-1] % 2 if inside else 0)
        start += len(token.text)
    return marks


def option(name: str, low: float, high: float, step: float, value: float, hint: str = "") -> Slide:
    """A slider that shows its value."""
    slide, shown = knob(name, low, high, step, value, lambda: shown.set_text(f"{slide.value:g}"), hint)
    return slide
