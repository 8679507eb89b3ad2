"""The playground: models write, one or two side by side, and every token can be asked and changed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from nicegui import ui

from groundling.analysis.memorization import Originality
from groundling.config import Sampling
from groundling.escape import printable
from groundling.run.run import Run
from groundling.web.studio.parts import Slide, Strip, Text, frame, told
from groundling.web.studio.studio import Studio
from groundling.web.studio.writing import GeneratedToken, opened, training_text, write

_MOST_TOKENS = 2000
_MOST_PROMPT = 20_000  # characters
_NO_RUN = "none"


def playground(studio: Studio, name: str = "") -> None:
    """A prompt, the knobs, and one or two models; `name` is the run that stands first."""
    with frame("Playground", "Playground"):
        names = studio.writers()
        if not names:
            Text("p", "No model can write yet: start a run first.", "soft")
            return
        Playground(studio, names, name if name in names else names[0])


class Playground:
    """The knobs, shared by both models."""

    def __init__(self, studio: Studio, names: Sequence[str], first: str) -> None:
        with Text("div", classes="form"):
            self.prompt = ui.textarea("Prompt", value="").props(f"outlined autogrow maxlength={_MOST_PROMPT}")
            with Text("div", classes="knobs"):
                self.temperature = knob("Temperature", 0.0, 2.0, 0.05, 0.7, "0: likeliest")
                self.top_k = knob("Top k", 0, 200, 1, 50, "0: no limit")
                self.length = knob("Tokens", 10, _MOST_TOKENS, 10, 300)
                self.seed = ui.number("Seed (drawn if empty)", min=0, step=1, format="%d").props(
                    "outlined dense hide-bottom-space"
                )
            with ui.expansion("More knobs").props("dense"), Text("div", classes="knobs"):
                self.top_p = knob("Top p", 0.05, 1.0, 0.05, 1.0, "1: off")
                self.min_p = knob("Min p", 0.0, 0.5, 0.01, 0.0, "0: off")
                self.repetition = knob("Repetition penalty", 1.0, 2.0, 0.05, 1.0, "1: off")
                self.presence = knob("Presence penalty", -2.0, 2.0, 0.1, 0.0, "0: off")
                self.frequency = knob("Frequency penalty", -2.0, 2.0, 0.1, 0.0, "0: off")
            with Text("div", classes="bar"):
                self.go = ui.button("Write", on_click=self.write).props("unelevated no-caps")
                self.halt = ui.button("Stop", on_click=self.stop).props("outline no-caps")
            Text("p", "The more paint, the less likely the model found it. Point at a token, or go there with the "
                 "arrow keys, to see what else it might have written; choose one of those to go on from there. What "
                 "stands in the training text, 30 characters or more of it, is underlined.", "soft")  # fmt: skip
        with Text("div", classes="pair"):
            self.columns = [Column(studio, names, first, self), Column(studio, [_NO_RUN, *names], _NO_RUN, self)]
        self.halt.set_visibility(False)

    def sampling(self) -> Sampling:
        """What the knobs say. Raises ValueError if that is nothing."""
        seed = None if self.seed.value is None else int(self.seed.value)
        return Sampling(
            temperature=self.temperature.value, top_k=int(self.top_k.value), top_p=self.top_p.value,
            min_p=self.min_p.value, repetition_penalty=self.repetition.value, presence_penalty=self.presence.value,
            frequency_penalty=self.frequency.value, seed=seed,
        )  # fmt: skip

    async def write(self) -> None:
        with told():
            sampling = self.sampling()  # one seed for both
            await asyncio.gather(*(column.write(sampling) for column in self.columns if column.chosen))

    def stop(self) -> None:
        for column in self.columns:
            column.stop.set()

    def busy(self) -> None:
        """Show what can be done now."""
        writing = any(column.writing for column in self.columns)
        self.halt.set_visibility(writing)
        self.go.set_enabled(not writing)


class Column:
    """One model, and what it writes."""

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
                ).props("outlined dense").classes("grow")  # fmt: skip
                self.step = ui.select({0: "best"}, value=0, label="Checkpoint").props("outlined dense").classes("short")
            self.strip = Strip("What the second model wrote" if second else "What the model wrote", self.branch)
            self.said = Text("p", "", "soft").props('role="status"')
        self.list_steps()
        ui.context.client.on_disconnect(self.stop.set)

    @property
    def chosen(self) -> bool:
        return bool(self.name.value != _NO_RUN)

    def list_steps(self) -> None:
        """The checkpoints of the run that is chosen."""
        for part in (self.step, self.strip, self.said):
            part.set_visibility(self.chosen)
        if self.chosen:
            with told():
                steps = self.studio.live(self.name.value).run.checkpoints.steps()
                self.step.set_options({0: "best"} | {step: f"step {step:,}" for step in reversed(steps)}, value=0)

    async def model(self) -> Run:
        return await asyncio.to_thread(opened, self.studio.folder(self.name.value), self.step.value or None)

    async def write(self, sampling: Sampling) -> None:
        """Write from the prompt on."""
        with told():
            self.prompt = (self.desk.prompt.value or "")[:_MOST_PROMPT]
            model = await self.model()
            self.before = model.prompt_ids(self.prompt)
            await self.go_on(model, [], sampling)

    async def branch(self, at: int, choice: int) -> None:
        """Put another token in the place of one, and go on from there."""
        with told():
            if self.writing or not 0 <= at < len(self.tokens) or not 0 <= choice < len(self.tokens[at].choices):
                return
            old, taken = self.tokens[at], self.tokens[at].choices[choice]
            new = GeneratedToken(taken.token, taken.text, taken.probability, old.choices)
            await self.go_on(await self.model(), [*self.tokens[:at], new], self.desk.sampling())

    async def go_on(self, model: Run, kept: list[GeneratedToken], sampling: Sampling) -> None:
        """Write after the tokens that are kept, and show each as it comes."""
        self.tokens = list(kept)
        self.strip.begin(printable(self.prompt), [for_strip(token) for token in kept])
        self.said.set_text("")
        before = [*self.before, *(token.token for token in kept)]
        left = max(int(self.desk.length.value) - len(kept), 0)
        self.stop.clear()
        self.writing = True
        self.desk.busy()
        try:
            written = Arriving(write(model, before, sampling, left), self.stop, self.studio.closing)
            while not written.ended:
                await asyncio.sleep(0.05)
                new = written.take()
                self.tokens += new
                self.strip.add([for_strip(token) for token in new])
        finally:
            self.writing = False
            self.desk.busy()
        self.said.set_text(f"{len(self.tokens):,} tokens, seed {sampling.seed}")
        await self.mark(model.folder, sampling)

    async def mark(self, folder: Any, sampling: Sampling) -> None:
        """Mark what it copied. What the text of a run has become, or that it is gone, is told here."""
        try:
            text = await asyncio.to_thread(training_text, folder)
            found = await asyncio.to_thread(text.report, "".join(token.text for token in self.tokens))
        except (ValueError, OSError) as error:
            self.said.set_text(f"{self.said.text}. What it copied is not known: {error}")
            return
        self.strip.mark_copied(copied_tokens(self.tokens, found))
        longest = f"{100 * found.share:.0f} % copied, the longest span has {found.longest:,} characters"
        self.said.set_text(f"{self.said.text}; {longest}")


class Arriving:
    """Tokens that a thread of its own draws, to be taken as they come."""

    def __init__(self, tokens: Iterator[GeneratedToken], *stops: threading.Event) -> None:
        self._new: list[GeneratedToken] = []
        self._lock, self._error = threading.Lock(), None
        self._task = asyncio.create_task(asyncio.to_thread(self._draw, tokens, stops))

    def _draw(self, tokens: Iterator[GeneratedToken], stops: Sequence[threading.Event]) -> None:
        for token in tokens:
            with self._lock:
                self._new.append(token)
            if any(stop.is_set() for stop in stops):
                return

    @property
    def ended(self) -> bool:
        """Whether all have been taken. Raises what the drawing raised."""
        if not self._task.done() or self._new:
            return False
        self._task.result()
        return True

    def take(self) -> list[GeneratedToken]:
        with self._lock:
            new, self._new = self._new, []
        return new


def for_strip(token: GeneratedToken) -> list[Any]:
    return [
        printable(token.text),
        token.probability,
        [[printable(c.text), c.probability] for c in token.choices],
    ]


def copied_tokens(tokens: Sequence[GeneratedToken], found: Originality) -> list[int]:
    """For each token 0, or 1 or 2 in turn where it lies in a copied span."""
    marks, start = list[int](), 0
    for token in tokens:
        stop = start + max(len(token.text), 1)
        inside = [n for n, span in enumerate(found.spans) if start < span.stop and span.start < stop]
        marks.append(1 + inside[-1] % 2 if inside else 0)
        start += len(token.text)
    return marks


def knob(name: str, low: float, high: float, step: float, value: float, about: str = "") -> Slide:
    """A slider with its name and its value."""
    with Text("div", classes="knob"):
        with Text("p"):
            Text("span", name)
            shown = Text("b", f"{value:g}")
            if about:
                Text("span", about, "soft")
        slide = Slide(name, low, high, step, value, lambda: shown.set_text(f"{slide.value:g}"))
    return slide
