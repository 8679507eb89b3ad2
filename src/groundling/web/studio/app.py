"""The studio as an app of its own, or mounted on another app."""

from __future__ import annotations

import ipaddress
import os
import warnings
import webbrowser
from functools import cache
from pathlib import Path

import nicegui
import torch
import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.types import ASGIApp

from groundling import storage
from groundling.run.folder import runs_folder
from groundling.web.guard import Guard
from groundling.web.sockets import BackgroundServer, bind, how_to_stop, in_event_loop, run, url
from groundling.web.studio.chat_page import chat_page
from groundling.web.studio.inside_page import inside_page
from groundling.web.studio.new_page import new_page
from groundling.web.studio.parts import style
from groundling.web.studio.playground import playground
from groundling.web.studio.policy import Policy
from groundling.web.studio.run_page import run_page
from groundling.web.studio.runs_page import runs_page
from groundling.web.studio.studio import Studio
from groundling.web.timeouts import uvicorn_config

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#2f6f4f"/>'
    '<path d="M6 24h20M8 20c4-1 4-10 8-10s4 9 8 10" fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round"/>'
    "</svg>"
)


def mount(app: FastAPI, studio: Studio, path: str = "/") -> ASGIApp:
    """Add the studio's pages to `app` below `path`. Returns the app to serve in its place.

    Raises ValueError if this process has done so before: NiceGUI keeps one set of pages.
    """
    if nicegui.app.config.has_run_config:
        raise ValueError(
            "This Python process has already opened another studio. Restart it, or use `groundling studio` in a "
            "terminal."
        )
    nicegui.app.on_shutdown(studio.closing.set)
    # NiceGUI inspects every object in memory, including PyTorch's deprecated ones.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"nicegui\.")
    ui.add_head_html(f"<style>{style()}</style>", shared=True)
    for field in (ui.input, ui.number, ui.select, ui.textarea):
        field.default_props("outlined")
    for control in (ui.button, ui.toggle):
        control.default_props("unelevated no-caps")

    ui.page("/")(lambda: runs_page(studio))
    ui.page("/new")(lambda: new_page(studio))
    ui.page("/runs/{name}")(lambda name: run_page(studio, name))
    ui.page("/chat")(lambda run="": chat_page(studio, run))
    ui.page("/playground")(lambda run="": playground(studio, run))
    ui.page("/inside")(lambda run="": inside_page(studio, run))

    ui.run_with(
        app, mount_path=path, title="groundling", favicon=_ICON, dark=None, tailwind=False, reconnect_timeout=30,
        show_welcome_message=False, gzip_middleware_factory=None,
    )  # fmt: skip
    return Policy(app)


_running: BackgroundServer | None = None
"""The studio in a thread of this process. NiceGUI keeps one set of pages, so there is one."""


def studio(
    *, out: str | os.PathLike[str] | None = None, host: str = "127.0.0.1", port: int = 8001, open: bool = False
) -> BackgroundServer | None:
    """Serve the studio until Ctrl-C.

    In an event loop, as in a notebook, it serves in a thread and returns at once, with its `url` and `close()`.

    Args:
        out: folder of runs. None: `GROUNDLING_RUNS`, or `runs` in the working directory.
        host: a loopback address.
        port: 0 picks a free one.
        open: also open a browser.

    Raises ValueError if `host` is not a loopback address or the studio is already running in this process, OSError if
    the port is taken.
    """
    global _running
    if not _is_loopback(host):
        raise ValueError(
            f"The studio starts programs and reads files, so it listens on loopback addresses only, not on {host}. "
            f"To reach it from another machine, use `ssh -L {port or 8001}:127.0.0.1:{port or 8001} THIS-MACHINE`."
        )
    if _running is not None and _running.alive:
        raise ValueError(f"The studio is already running at {_running.url}. Use that one, or close it first.")
    runs = runs_folder(out).resolve()
    storage.check_writable(runs, "--out or GROUNDLING_RUNS", lambda sentence: print(f"note: {sentence}"))
    app, pages = _app(runs)
    pages.closing.clear()
    listener = bind(host, port, None)
    address = url(listener)
    print(f"The studio is at {address} ({how_to_stop()})", flush=True)
    if not in_event_loop():
        torch.set_num_threads(1)  # leave the cores to training; generating one text needs no more
    if open:
        webbrowser.open(address)
    _running = run(uvicorn.Server(uvicorn_config(app, log_level="warning", grace_seconds=2)), listener, address)
    if _running is None:
        for folder, pid in pages.processes.all_started().items():
            print(f"{folder.name} is still training (process {pid}). To pause it, open the studio again.")
    return _running


@cache
def _app(out: Path) -> tuple[ASGIApp, Studio]:
    """The app of the studio of one folder, to which a process can return after closing it."""
    pages = Studio(out)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    return Guard(mount(app, pages), names=frozenset({"localhost"}), loopback=True, key=None, uploads=True), pages


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
