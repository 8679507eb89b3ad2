"""The page that looks into a model while it reads a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nicegui import ui

from groundling.analysis.model_trace import ModelTrace, neighbours
from groundling.run.run import Run
from groundling.web.studio.parts import Cells, Slide, Text, frame, heading, shown, told
from groundling.web.studio.studio import Studio
from groundling.web.studio.writing import opened, piece

_MOST = 64  # tokens of the prompt: more make a table that nobody reads


def inside_page(studio: Studio, name: str = "") -> None:
    """Attention, the layers' own guesses, and neighbours; of the run `name`, or the newest."""
    with frame("Inside", "Inside"):
        names = studio.writers()
        if not names:
            Text("p", "There is no model to look into yet: start a run first.", "soft")
            return
        Inside(studio, names, name if name in names else names[0])


class Inside:
    """A model, a prompt, and three ways to look at them."""

    def __init__(self, studio: Studio, names: list[str], chosen: str) -> None:
        self.studio = studio
        self.model: Run | None = None
        self.reading: ModelTrace | None = None
        with Text("div", classes="bar"):
            self.name = ui.select(names, value=chosen, label="Run", on_change=self.read).props("outlined dense")
            self.prompt = ui.input("Prompt", value="To be, or not to be").props(
                f"outlined dense maxlength={20 * _MOST}"
            )
            self.prompt.classes("grow").on("keydown.enter", self.read)
            ui.button("Read", on_click=self.read).props("unelevated no-caps")
        self.said = Text("p", "", "soft").props('role="status"')
        with Text("section") as self.body:
            heading("Where it looks", "A row is a position of the text. Its paint shows how much it takes from each "
                    "position up to its own, in one head of one layer.")  # fmt: skip
            with Text("div", classes="knobs"):
                self.layer, self.layer_name = pick_one("Layer", 1, self.attention)
                self.head, self.head_name = pick_one("Head", 0, self.attention)
            self.looks = Cells("Attention", "square")
            heading("What it would say after each layer", "The output head reads every layer as if it were the last. "
                    "A cell holds the likeliest next token there; the more paint, the surer. Guesses usually become "
                    "sensible in the upper layers only.")  # fmt: skip
            self.guesses = Cells("The likeliest next token after each layer")
            heading("Who is like whom", "Tokens whose embeddings point the same way are much the same to the model.")
            self.token = ui.select({}, label="Token", on_change=self.neighbours, with_input=True).props(
                "outlined dense"
            )
            self.near = Text("div", classes="near")
        self.body.set_visibility(False)
        ui.timer(0.05, self.read, once=True)

    async def read(self) -> None:
        """Let the model read the prompt."""
        with told():
            model = await asyncio.to_thread(opened, self.studio.folder(self.name.value))
            text = self.prompt.value or ""
            tokens = model.tokenizer.encode(text, "skip")
            left_out = (len(text) and not tokens) or model.tokenizer.decode(tokens) != text
            kept = tokens[: min(_MOST, model.config.model.block_size)]
            self.model, self.reading = model, await asyncio.to_thread(ModelTrace, model.model, kept)
            notes = ["What the model never saw was left out."] if left_out else []
            if len(kept) < len(tokens):
                notes.append(f"Only the first {len(kept)} of {len(tokens)} tokens are read.")
            self.said.set_text(" ".join(notes))
            settings = model.config.model
            self.layer.place(min(self.layer.value, settings.n_layer), settings.n_layer)
            self.head.place(min(self.head.value, settings.n_head), settings.n_head)
            self.body.set_visibility(True)
            await self.attention()
            await self.lens()
            names = {i: shown(piece(model.tokenizer, i)) for i in range(model.tokenizer.vocab_size)}
            self.token.set_options(names, value=kept[0])
            self.neighbours()

    async def attention(self) -> None:
        """One head's weights, or the mean of all."""
        if self.reading is None or self.model is None:
            return
        layer, head, of = int(self.layer.value), int(self.head.value), self.model.config.model
        self.layer_name.set_text(f"{layer} of {of.n_layer}")
        self.head_name.set_text(f"{head} of {of.n_head}" if head else f"the mean of all {of.n_head}")
        every = await asyncio.to_thread(self.reading.attention, layer - 1)
        weights = (every[head - 1] if head else every.mean(0)).tolist()
        names = self.names()
        cells = [
            [("", weight, f"{names[i]} ({i + 1}) takes {100 * weight:.0f} % from {names[j]} ({j + 1})")
             for j, weight in enumerate(row[: i + 1])]
            for i, row in enumerate(weights)
        ]  # fmt: skip
        self.looks.show(names, names, cells)

    async def lens(self) -> None:
        """The likeliest next tokens after each layer."""
        assert self.reading is not None and self.model is not None
        tokenizer, n_layer = self.model.tokenizer, self.model.config.model.n_layer
        names, cells = self.names(), []
        for layer in range(n_layer + 1):
            likeliest = (await asyncio.to_thread(self.reading.probabilities, layer)).topk(min(5, tokenizer.vocab_size))
            row = []
            for i, (shares, ids) in enumerate(zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)):
                said = ", ".join(
                    f"{shown(piece(tokenizer, t))} {100 * p:.0f} %" for t, p in zip(ids, shares, strict=True)
                )
                row.append((shown(piece(tokenizer, ids[0])), shares[0], f"After {names[i]} (position {i + 1}): {said}"))
            cells.append(row)
        rows = ["embedding", *(f"layer {n}" for n in range(1, n_layer + 1))]
        # The model's own answer stands first, and the way to it below.
        self.guesses.show(names, rows[::-1], cells[::-1])

    def neighbours(self) -> None:
        """The nearest in the embedding."""
        if self.model is None or self.token.value is None:
            return
        self.near.clear()
        with self.near:
            for token, cosine in neighbours(self.model.model, int(self.token.value)):
                Text("span", shown(piece(self.model.tokenizer, token)), "what")
                with Text("span", classes="track"):
                    Text("span", classes="bar").style(f"width: {100 * max(cosine, 0):.1f}%")
                Text("span", f"{cosine:.2f}", "share")

    def names(self) -> list[str]:
        assert self.reading is not None and self.model is not None
        return [shown(piece(self.model.tokenizer, token)) for token in self.reading.tokens]


def pick_one(name: str, low: int, on_move: Callable[[], Any]) -> tuple[Slide, Text]:
    """A slider over layers or heads, counted from 1, and what says where it is."""
    with Text("div", classes="knob"):
        with Text("p"):
            Text("span", name)
            label = Text("b")
        slide = Slide(name, low, 1, 1, 1, on_move)
    return slide, label
