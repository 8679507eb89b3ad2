"""The studio as an app of its own, or mounted on another's."""

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
from groundling.web.sockets import bind
from groundling.web.studio.inside_page import inside_page
from groundling.web.studio.new_page import new_page
from groundling.web.studio.parts import Text, frame, style
from groundling.web.studio.playground import playground
from groundling.web.studio.policy import Policy
from groundling.web.studio.run_page import run_page
from groundling.web.studio.runs_page import runs_page
from groundling.web.studio.studio import Studio
from groundling.web.timeouts import Connection

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#2f6f4f"/>'
    '<path d="M6 24h20M8 20c4-1 4-10 8-10s4 9 8 10" fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round"/>'
    "</svg>"
)


def mount(app: FastAPI, studio: Studio, path: str = "/") -> ASGIApp:
    """Put the studio's pages below `path` of `app`, and return what to serve in its place.

    NiceGUI has one set of pages a process, so this is done once.
    """
    nicegui.app.on_shutdown(studio.closing.set)
    # NiceGUI looks at each object that there is, at PyTorch's deprecated ones too.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"nicegui\.")
    ui.add_head_html(f"<style>{style()}</style>", shared=True)

    @ui.page("/")
    def _runs() -> None:
        runs_page(studio)

    @ui.page("/new")
    def _new() -> None:
        new_page(studio)

    @ui.page("/runs/{name}")
    def _run(name: str) -> None:
        try:
            run_page(studio, name)
        except ValueError as error:
            with frame("No such run"):
                Text("p", str(error))

    @ui.page("/playground")
    def _playground(run: str = "") -> None:
        playground(studio, run)

    @ui.page("/inside")
    def _inside(run: str = "") -> None:
        inside_page(studio, run)

    ui.run_with(
        app, mount_path=path, title="groundling", favicon=_ICON, dark=None, tailwind=False, reconnect_timeout=30,
        show_welcome_message=False, gzip_middleware_factory=None,
    )  # fmt: skip
    return Policy(app)


def serve_studio(
    *, out: str | os.PathLike[str] | None = None, host: str = "127.0.0.1", port: int = 8001, open: bool = False
) -> None:
    """Show the runs of a folder on a page until Ctrl-C.

    Args:
        out: the folder of runs; `GROUNDLING_RUNS`, or `runs` in the working directory, if None.
        host: where it listens: this machine alone.
        port: 0 takes a free one.
        open: open a browser there.

    Raises ValueError if `host` is not this machine, OSError if the port is taken.
    """
    if not _is_here(host):
        raise ValueError(
            f"The studio starts programs and reads files, so it listens on this machine alone, and {host} is another "
            "address. From elsewhere, reach it through `ssh -L 8001:127.0.0.1:8001 THIS-MACHINE`."
        )
    studio = Studio(runs_folder(out))
    torch.set_num_threads(1)  # the cores are for training; one text at a time needs no more
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    guarded = Guard(mount(app, studio), names=frozenset({"localhost"}), loopback=True, key=None, uploads=True)
    config = uvicorn.Config(
        guarded, http=Connection, ws_max_size=2**20, log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    with bind(host, port, None) as listener:
        listener.listen()
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        print(f"The studio is at {address} (Ctrl-C ends it)", flush=True)
        if open:
            webbrowser.open(address)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises the signal again when all is closed
            pass
    for folder, number in studio.processes.all_started().items():
        print(f"{folder.name} goes on training (process {number}): open the studio again to pause it.")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
