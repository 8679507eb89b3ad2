"""The page that looks inside a model while it reads a prompt."""

from __future__ import annotations

import asyncio

from nicegui import ui

from groundling.analysis.model_trace import ModelTrace, neighbours
from groundling.run.run import Run
from groundling.web.studio.parts import Cells, Text, errors_shown, frame, heading, knob, visible
from groundling.web.studio.studio import Studio
from groundling.web.studio.writing import opened, piece

_MAX_TOKENS = 64  # of the prompt: nobody reads a larger table


def inside_page(studio: Studio, name: str = "") -> None:
    """Attention, logit lens and nearest tokens of the run `name`, or of the newest run."""
    with frame("Inside the model", "Inside"):
        names = studio.writers()
        if not names:
            Text("p", "No trained model yet. Start a run first.", "soft")
            return
        Inside(studio, names, name if name in names else names[0])


class Inside:
    """A model, a prompt, and three views of them."""

    def __init__(self, studio: Studio, names: list[str], chosen: str) -> None:
        self.studio = studio
        self.model: Run  # this and the next two come with the first `read`; until then, all their views are hidden
        self.trace: ModelTrace
        self.names: list[str]
        with Text("div", classes="bar"):
            self.run = ui.select(names, value=chosen, label="Run", on_change=self.read).props("dense")
            self.prompt = ui.input("Prompt").classes("grow")
            self.prompt.props(f"dense maxlength={20 * _MAX_TOKENS}").on("keydown.enter", self.read)
            ui.button("Analyze", on_click=self.read)
        self.notes = Text("p", "", "soft").props('role="status"')
        with Text("section") as self.body:
            heading("Attention", "Each row shows how much one position attends to itself and to earlier positions, in "
                    "one head of one layer. Stronger color means more.")  # fmt: skip
            with Text("div", classes="knobs"):
                self.layer, self.layer_name = knob("Layer", 1, 1, 1, 1, self.attention)
                self.head, self.head_name = knob("Head", 0, 1, 1, 1, self.attention)
            self.weights = Cells("Attention").classes("square")
            heading("Logit lens: prediction after each layer", "The output head is applied after every layer, as if it "
                    "were the last. A cell shows the most likely next token. Stronger color means more certain. "
                    "Predictions usually make sense only in the upper layers.")  # fmt: skip
            self.predictions = Cells("Most likely next token after each layer")
            heading("Nearest tokens", "Tokens whose embeddings point in almost the same direction mean almost the same "
                    "to the model. The number is the cosine similarity.")  # fmt: skip
            self.token = ui.select({}, label="Token", on_change=self.neighbours, with_input=True).props("dense")
            self.near = Text("div", classes="near")
        self.body.set_visibility(False)
        ui.timer(0.05, self.read, once=True)

    async def read(self) -> None:
        """Run the model on the prompt and show everything."""
        with errors_shown():
            model = await asyncio.to_thread(opened, self.studio.folder(self.run.value))
            text = self.prompt.value or ""
            tokens = model.tokenizer.encode(text, "skip")
            if not tokens:  # no prompt yet, or one in a script that the model has never seen
                text = self.prompt.value = model.example_prompt(_MAX_TOKENS)
                tokens = model.tokenizer.encode(text)
            kept = tokens[: min(_MAX_TOKENS, model.config.model.block_size)]
            self.model, self.trace = model, await asyncio.to_thread(ModelTrace, model.model, kept)
            self.names = [self.name(token) for token in kept]
            notes = []
            if model.tokenizer.decode(tokens) != text:
                notes.append("Characters that the tokenizer does not know were dropped.")
            if len(kept) < len(tokens):
                notes.append(f"Only the first {len(kept)} of {len(tokens)} tokens are shown.")
            self.notes.set_text(" ".join(notes))
            settings = model.config.model
            self.layer.place(self.layer.value, settings.n_layer)
            self.head.place(self.head.value, settings.n_head)
            self.body.set_visibility(True)
            await self.attention()
            await self.lens()
            self.token.set_options({i: self.name(i) for i in range(model.tokenizer.vocab_size)}, value=kept[0])
            self.neighbours()

    async def attention(self) -> None:
        """The weights of one head, or the mean of all."""
        layer, head, settings = int(self.layer.value), int(self.head.value), self.model.config.model
        self.layer_name.set_text(f"{layer} of {settings.n_layer}")
        self.head_name.set_text(f"{head} of {settings.n_head}" if head else f"mean of all {settings.n_head}")
        heads = await asyncio.to_thread(self.trace.attention, layer - 1)
        weights = (heads[head - 1] if head else heads.mean(0)).tolist()
        names = self.names
        cells = [
            [("", weight, f"{names[i]} ({i + 1}) attends {100 * weight:.0f} % to {names[j]} ({j + 1})")
             for j, weight in enumerate(row[: i + 1])]
            for i, row in enumerate(weights)
        ]  # fmt: skip
        self.weights.show(names, names, cells)

    async def lens(self) -> None:
        """The most likely next tokens after each layer."""
        n_layer, cells = self.model.config.model.n_layer, []
        for layer in range(n_layer + 1):
            probabilities = await asyncio.to_thread(self.trace.probabilities, layer)
            top = probabilities.topk(min(5, probabilities.size(-1)))
            row = []
            for i, (shares, ids) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
                tokens = [self.name(token) for token in ids]
                ranking = ", ".join(f"{token} {100 * p:.0f} %" for token, p in zip(tokens, shares, strict=True))
                row.append((tokens[0], shares[0], f"After {self.names[i]} (position {i + 1}): {ranking}"))
            cells.append(row)
        rows = ["embedding", *(f"layer {n}" for n in range(1, n_layer + 1))]
        self.predictions.show(self.names, rows[::-1], cells[::-1])  # the model's own prediction on top

    def neighbours(self) -> None:
        """The tokens with the most similar embeddings."""
        if self.token.value is None:
            return
        self.near.clear()
        with self.near:
            for token, cosine in neighbours(self.model.model, int(self.token.value)):
                Text("span", self.name(token), "what")
                with Text("span", classes="track"):
                    Text("span", classes="bar").style(f"width: {100 * max(cosine, 0):.1f}%")
                Text("span", f"{cosine:.2f}", "share")

    def name(self, token: int) -> str:
        return visible(piece(self.model.tokenizer, token))
