"""The elements of the studio's pages. They show text as text and never parse it as HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement
from nicegui.events import GenericEventArguments

_PAGES = (("Runs", "/"), ("Chat", "/chat"), ("Playground", "/playground"), ("Inside", "/inside"))


class Text(TextElement):
    """An HTML element of any kind that holds text."""

    def __init__(self, tag: str, text: str = "", classes: str = "") -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)


class Plot(Element, component="assets/plot.js"):
    """A chart as `reporting.charts.drawn` returns it."""

    def show(self, chart: dict[str, Any] | None, last: float, axis: str = "step") -> None:
        """Draw `chart`, or nothing if it is None. The x-axis ends at `last` and counts "step"s or "second"s."""
        self.props.update(chart=chart, last=last, axis=axis)
        self.update()


class Slide(Element, component="assets/slide.js"):
    """A slider from `low` to `high`. Calls `on_move` when the user moves it."""

    def __init__(
        self, label: str, low: float, high: float, step: float, value: float, on_move: Callable[[], Any]
    ) -> None:  # fmt: skip
        super().__init__()
        self.props.update(label=label, low=low, high=high, step=step, value=value)
        self.value = value

        def moved(event: GenericEventArguments) -> Any:
            self.value = min(max(float(event.args), low), float(self.props["high"]))
            with self.props.suspend_updates():  # the browser already shows it
                self.props["value"] = self.value
            return on_move()

        self.on("moved", moved, throttle=0.05)

    def place(self, value: float, high: float) -> None:
        """Set the upper end, and the value, at most that."""
        self.value = min(value, high)
        self.props.update(value=self.value, high=high)
        self.update()


def knob(
    name: str, low: float, high: float, step: float, value: float, on_move: Callable[[], Any], hint: str = ""
) -> tuple[Slide, Text]:  # fmt: skip
    """A slider below its name, and the element that shows its value."""
    with Text("div", classes="knob"):
        with Text("p"):
            Text("span", name)
            shown = Text("b", f"{value:g}")
            if hint:
                Text("span", hint, "soft")
        return Slide(name, low, high, step, value, on_move), shown


class Strip(Element, component="assets/strip.js"):
    """Generated text, each token shaded by its probability: a stronger color means less likely.

    Pointing at a token, or moving to it with the arrow keys, shows its alternatives. A token is a list of its text,
    its probability, and its alternatives, each a text and a probability.
    """

    def __init__(self, label: str, on_branch: Callable[[int, int], Any]) -> None:
        """`on_branch` gets the index of a token and of the alternative that the user picked."""
        super().__init__()
        self.props["label"] = label
        self.on("branch", lambda event: on_branch(int(event.args["at"]), int(event.args["choice"])))

    def begin(self, prompt: str, tokens: Sequence[list[Any]]) -> None:
        self.run_method("begin", prompt, tokens)

    def add(self, tokens: Sequence[list[Any]]) -> None:
        self.run_method("add", tokens)

    def mark_copied(self, copied: Sequence[int]) -> None:
        """`copied` holds one number per token: 0 if not copied, else 1 or 2, alternating from span to span."""
        self.run_method("mark", copied)


class Cells(Element, component="assets/cells.js"):
    """A table of cells, each shaded by a number from 0 to 1.

    Pointing at a cell, or moving to it with the arrow keys, shows its description.
    """

    def __init__(self, label: str) -> None:
        super().__init__()
        self.props["label"] = label

    def show(
        self, columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[tuple[str, float, str]]]
    ) -> None:
        """`cells` holds text, number and description, row by row. A row may be shorter than `columns`."""
        self.props.update(columns=list(columns), rows=list(rows), cells=cells)
        self.update()


@contextmanager
def frame(title: str, here: str = "") -> Iterator[None]:
    """A page: title, navigation, and what you create inside. `here` is its name in the navigation."""
    ui.page_title(f"{title} · groundling")
    with Text("header", classes="top"):
        ui.link("groundling", "/").classes("home")
        with Text("nav").props('aria-label="Pages"'):
            for name, target in _PAGES:
                link = ui.link(name, target)
                if name == here:
                    link.props('aria-current="page"')
    with Text("main", classes="sheet") as main:
        ui.skip_link(target=main)
        Text("h1", title)
        yield


def heading(text: str, about: str = "") -> None:
    Text("h2", text)
    if about:
        Text("p", about, "soft")


def paragraph(text: str) -> None:
    """A paragraph in which `code` is shown as code."""
    with Text("p"):
        for number, part in enumerate(text.split("`")):
            Text("code" if number % 2 else "span", part)


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show a ValueError or OSError as a notification instead of raising it."""
    try:
        yield
    except (ValueError, OSError) as error:
        ui.notify(" ".join(str(error).split()), type="warning", multi_line=True, close_button="OK", timeout=12_000)


def style() -> str:
    """The CSS of all pages."""
    files = ("reporting/chart.css", "reporting/rollouts.css", "web/studio/assets/studio.css")
    return "".join(resources.files("groundling").joinpath(file).read_text(encoding="utf-8") for file in files)


def visible(text: str) -> str:
    """A token on one line, with signs for spaces, newlines and tabs."""
    return text.translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥"})
