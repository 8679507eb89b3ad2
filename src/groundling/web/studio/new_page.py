"""The page that starts a run."""

from __future__ import annotations

import asyncio

from nicegui import events, ui

from groundling.config import PRESETS
from groundling.web.guard import MAX_UPLOAD
from groundling.web.studio.parts import Text, frame, told
from groundling.web.studio.studio import NAMED, Studio

_PLANNED = "planned for the time"
_TOKENIZERS = {"char": "characters", "byte": "bytes", "bpe": "pieces of words"}


def new_page(studio: Studio) -> None:
    """A text, a time, and off it goes."""
    with frame("New run"):
        Text("p", "A text and a time is all it takes: size, batch and schedule are planned for that time.", "soft")
        with Text("div", classes="form"):
            path = ui.input("Text: the path of a file or folder on this machine, or " + " or ".join(NAMED)).props(
                "outlined"
            )

            async def take(upload: events.UploadEventArguments) -> None:
                with told():
                    if upload.file.size() > MAX_UPLOAD:
                        raise ValueError(f"The text is larger than {MAX_UPLOAD // 2**20} MB: give its path instead.")
                    place = studio.place_for_upload()
                    await upload.file.save(place)
                    path.value = str(await asyncio.to_thread(studio.keep_upload, upload.file.name, place))

            ui.upload(
                label="or a file: drop it here, or press +", on_upload=take, auto_upload=True,
                max_file_size=MAX_UPLOAD, max_files=1,
                on_rejected=lambda: ui.notify(f"A text of up to {MAX_UPLOAD // 2**20} MB can be uploaded."),
            ).props("flat bordered")  # fmt: skip
            minutes = ui.number("Minutes", value=5, min=0.2, max=14 * 24 * 60, step=1).props("outlined")
            with ui.expansion("More").props("dense"), Text("div", classes="form"):
                name = ui.input("Name of the run (made from the text if empty)").props("outlined")
                shape = {"": _PLANNED} | {key: f"{key}: {each.description}" for key, each in PRESETS.items()}
                preset = ui.select(shape, value="", label="Model").props("outlined options-dense")
                tokenizer = ui.select(_TOKENIZERS, value="char", label="Tokens are").props("outlined")

            async def begin() -> None:
                with told():
                    begun = await asyncio.to_thread(
                        studio.begin, path.value or "", minutes=float(minutes.value or 0), preset=preset.value or None,
                        tokenizer=tokenizer.value, name=name.value or "",
                    )  # fmt: skip
                    ui.navigate.to(f"/runs/{begun}")

            ui.button("Start", on_click=begin).props("unelevated no-caps")
        Text("p", "The run is a process of its own: it goes on when this page, or the studio, is closed.", "soft")
