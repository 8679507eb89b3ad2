"""The studio as an app of its own, or mounted on another app."""

from __future__ import annotations

import ipaddress
import os
import warnings
import webbrowser

import nicegui
import torch
import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.types import ASGIApp

from groundling.run.folder import runs_folder
from groundling.web.guard import Guard
from groundling.web.sockets import bind, url
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

    Call it once per process: NiceGUI keeps one set of pages.
    """
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
    ui.page("/playground")(lambda run="": playground(studio, run))
    ui.page("/inside")(lambda run="": inside_page(studio, run))

    ui.run_with(
        app, mount_path=path, title="groundling", favicon=_ICON, dark=None, tailwind=False, reconnect_timeout=30,
        show_welcome_message=False, gzip_middleware_factory=None,
    )  # fmt: skip
    return Policy(app)


def serve_studio(
    *, out: str | os.PathLike[str] | None = None, host: str = "127.0.0.1", port: int = 8001, open: bool = False
) -> None:
    """Serve the studio until Ctrl-C.

    Args:
        out: folder of runs. None: `GROUNDLING_RUNS`, or `runs` in the working directory.
        host: a loopback address.
        port: 0 picks a free one.
        open: also open a browser.

    Raises ValueError if `host` is not a loopback address, OSError if the port is taken.
    """
    if not _is_loopback(host):
        raise ValueError(
            f"The studio starts programs and reads files, so it listens on loopback addresses only, not on {host}. "
            "To reach it from another machine, use `ssh -L 8001:127.0.0.1:8001 THIS-MACHINE`."
        )
    studio = Studio(runs_folder(out))
    torch.set_num_threads(1)  # leave the cores to training; generating one text needs no more
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    guarded = Guard(mount(app, studio), names=frozenset({"localhost"}), loopback=True, key=None, uploads=True)
    config = uvicorn_config(guarded, log_level="warning", grace_seconds=2)
    with bind(host, port, None) as listener:
        listener.listen()
        print(f"The studio is at {url(listener)} (Ctrl-C stops it)", flush=True)
        if open:
            webbrowser.open(url(listener))
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises the signal again after it has closed everything
            pass
    for folder, pid in studio.processes.all_started().items():
        print(f"{folder.name} is still training (process {pid}). To pause it, open the studio again.")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
