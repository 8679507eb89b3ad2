"""The studio as an app of its own, or mounted on another's."""

from __future__ import annotations

import os
import socket
import webbrowser

import uvicorn
from fastapi import FastAPI
from nicegui import ui

from groundling.run import runs_folder
from groundling.web.studio.inside_page import inside_page
from groundling.web.studio.new_page import new_page
from groundling.web.studio.parts import Text, frame, style
from groundling.web.studio.playground import playground
from groundling.web.studio.policy import Policy
from groundling.web.studio.run_page import run_page
from groundling.web.studio.runs_page import runs_page
from groundling.web.studio.studio import Studio


def mount(app: FastAPI, studio: Studio, path: str = "/") -> None:
    """Put the studio's pages below `path` of `app`. NiceGUI has one set of pages a process, so this is done once."""
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

    ui.run_with(app, mount_path=path, title="groundling", dark=None, tailwind=False, show_welcome_message=False,
                reconnect_timeout=30, gzip_middleware_factory=None)  # fmt: skip


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
    studio = Studio(runs_folder(out))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    mount(app, studio)
    with _listening(host, port) as door:
        address = f"http://{host}:{door.getsockname()[1]}"
        print(f"The studio is at {address} (Ctrl-C ends it)", flush=True)
        if open:
            webbrowser.open(address)
        server = uvicorn.Server(uvicorn.Config(Policy(app), log_level="warning", ws_max_size=2**20,
                                               timeout_graceful_shutdown=2))  # fmt: skip
        try:
            server.run(sockets=[door])
        except KeyboardInterrupt:
            pass
    for folder, number in studio.processes.all_started().items():
        print(f"{folder.name} goes on training (process {number}): open the studio again to pause it.")


def _listening(host: str, port: int) -> socket.socket:
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(
            f"The studio starts programs and reads files, so it listens on this machine alone, and {host} is another "
            "address. From elsewhere, reach it through `ssh -L 8001:127.0.0.1:8001 THIS-MACHINE`."
        )
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"Port {port} cannot be used ({error.strerror}): choose another with --port.") from None
