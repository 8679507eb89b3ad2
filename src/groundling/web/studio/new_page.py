"""The page that starts a run."""

from __future__ import annotations

import asyncio

from nicegui import events, ui

from groundling.config import PRESETS
from groundling.web.guard import MAX_UPLOAD
from groundling.web.studio.parts import Text, errors_shown, frame
from groundling.web.studio.studio import NAMED, Studio

_TOKENIZERS = {"char": "char: characters", "byte": "byte: UTF-8 bytes", "bpe": "bpe: subwords"}


def new_page(studio: Studio) -> None:
    """A form for text, time and options."""
    with frame("New run"):
        Text("p", "Choose a text and a time. Model size, batch and schedule are picked to fit.", "soft")
        with Text("div", classes="form"):
            path = ui.input(f"Text: path of a file or folder on this machine, or {' or '.join(NAMED)}")

            async def upload(event: events.UploadEventArguments) -> None:
                with errors_shown():
                    place = studio.place_for_upload()
                    await event.file.save(place)
                    path.value = str(await asyncio.to_thread(studio.keep_upload, event.file.name, place))

            ui.upload(
                label="Or upload a file: drop it here, or press +", on_upload=upload, auto_upload=True,
                max_file_size=MAX_UPLOAD, max_files=1,
                on_rejected=lambda: ui.notify(f"Uploads are limited to {MAX_UPLOAD // 2**20} MB."),
            ).props("flat bordered")  # fmt: skip
            minutes = ui.number("Minutes", value=5, min=0.2, max=14 * 24 * 60, step=1)
            with ui.expansion("More options").props("dense"), Text("div", classes="form"):
                name = ui.input("Run name (default: from the text)")
                shapes = {"": "automatic: fits the time"}
                shapes |= {key: f"{key}: {each.description}" for key, each in PRESETS.items()}
                preset = ui.select(shapes, value="", label="Model").props("options-dense")
                tokenizer = ui.select(_TOKENIZERS, value="char", label="Tokenizer")

            async def start() -> None:
                with errors_shown():
                    started = await asyncio.to_thread(
                        studio.begin, path.value or "", minutes=float(minutes.value or 0), preset=preset.value or None,
                        tokenizer=tokenizer.value, name=name.value or "",
                    )  # fmt: skip
                    ui.navigate.to(f"/runs/{started}")

            ui.button("Start", on_click=start)
        Text("p", "Training is a separate process. It continues if you close this page or stop the studio.", "soft")
