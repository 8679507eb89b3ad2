"""The elements that the studio's pages are made of. Whatever they show is set as text: none of it is read as HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement
from nicegui.events import GenericEventArguments

_PAGES = (("Runs", "/"), ("Playground", "/playground"), ("Inside", "/inside"))


class Text(TextElement):
    """An HTML element of any kind that holds text."""

    def __init__(self, tag: str, text: str = "", classes: str = "") -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)


class Plot(Element, component="plot.js"):
    """A chart, as `report.charts.drawn` makes them. `axis` is what it runs along: "step" or "second"."""

    def __init__(self, axis: str = "step", classes: str = "") -> None:
        super().__init__()
        self.props["axis"] = axis
        self.classes(classes)

    def show(self, chart: dict[str, Any] | None, last: float, axis: str = "step") -> None:
        """Draw `chart`, which reaches to `last`; nothing if it is None."""
        self.props["axis"], self.props["last"], self.props["chart"] = axis, last, chart
        self.update()


class Slide(Element, component="slide.js"):
    """A slider from `low` to `high`; `on_move` is called when the user has moved it."""

    def __init__(
        self, label: str, low: float, high: float, step: float, value: float, on_move: Callable[[], Any]
    ) -> None:  # fmt: skip
        super().__init__()
        self.props.update(label=label, low=low, high=high, step=step, value=value)
        self.value = value

        def moved(event: GenericEventArguments) -> Any:
            self.value = min(max(float(event.args), low), float(self.props["high"]))
            with self.props.suspend_updates():  # it is where it is already
                self.props["value"] = self.value
            return on_move()

        self.on("moved", moved, throttle=0.05)

    def place(self, value: float, high: float) -> None:
        """Put it somewhere, and its end too."""
        self.value = value
        self.props.update(value=value, high=high)
        self.update()


class Strip(Element, component="strip.js"):
    """A text that a model wrote, token by token, each painted by how unlikely it was; pointing at one, or moving to it
    with the arrow keys, shows what might have stood there instead.

    A token is a list of its text, its probability, and its choices, each a text and a probability.
    """

    def __init__(self, label: str, on_branch: Callable[[int, int], Any]) -> None:
        """`on_branch` is called with a token's place and the number of the choice that was taken in its stead."""
        super().__init__()
        self.props["label"] = label
        self.on("branch", lambda event: on_branch(int(event.args["at"]), int(event.args["choice"])))

    def begin(self, prompt: str, tokens: Sequence[list[Any]]) -> None:
        self.run_method("begin", prompt, tokens)

    def add(self, tokens: Sequence[list[Any]]) -> None:
        self.run_method("add", tokens)

    def mark_copied(self, copied: Sequence[int]) -> None:
        """For each token 0, or 1 or 2 in turn where it lies in a copied span."""
        self.run_method("mark", copied)


class Cells(Element, component="cells.js"):
    """A table of cells, each painted by a number from 0 to 1; pointing at one, or moving to it with the arrow keys,
    says in words what it holds."""

    def __init__(self, label: str, classes: str = "") -> None:
        super().__init__()
        self.props["label"] = label
        self.classes(classes)

    def show(
        self, columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[tuple[str, float, str]]]
    ) -> None:
        """`cells` are text, number and words, row by row; a row may be shorter than there are columns."""
        self.props["columns"], self.props["rows"], self.props["cells"] = list(columns), list(rows), cells
        self.update()


@contextmanager
def frame(title: str, here: str = "") -> Iterator[None]:
    """A page: its head, the way to the others, and what is made inside."""
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


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong as a user could have known is told in a sentence, and the page stays."""
    try:
        yield
    except (ValueError, OSError) as error:
        ui.notify(" ".join(str(error).split()), type="warning", multi_line=True, close_button="OK", timeout=12_000)


def style() -> str:
    """The style of all pages."""
    return resources.files(__package__).joinpath("studio.css").read_text(encoding="utf-8")


def shown(text: str) -> str:
    """A token in one line: what cannot be seen, by its sign."""
    return "".join({" ": "␣", "\n": "↵", "\t": "⇥"}.get(c, c) for c in text)
