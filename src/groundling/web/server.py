"""`serve`: models loaded, a socket bound, requests answered until a signal comes."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence

import psutil
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from groundling.acceleration.precision import Precision
from groundling.data.tokenizers.base import Unknown
from groundling.run.folder import runs_folder
from groundling.run.store import load
from groundling.web.app import Api, create_app
from groundling.web.guard import Guard
from groundling.web.loaded_model import LoadedModel, open_runs
from groundling.web.metrics import Metrics, counted
from groundling.web.sockets import bind
from groundling.web.timeouts import Connection

MAX_SLOTS = 64
FAREWELL_SECONDS = 5
"""How long answers that are under way may go on after a signal to stop."""


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def serve(
    *runs: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    slots: int | None = None,
    precision: Precision = "float32",
    unknown: Unknown = "error",
    studio: bool = False,
    out: str | os.PathLike[str] | None = None,
    notice: Callable[[str], None] = _say,
) -> None:
    """Answer OpenAI's clients with these runs (names, or paths to runs or checkpoints), until SIGINT or SIGTERM.

    Each model is read into memory once, with weights of that `precision`, so that its run may go on training. It
    generates up to `slots` texts at a time: as many as memory has room for, up to 64, if None. `api_key` (else the
    environment's GROUNDLING_API_KEY) is what clients have to send; without one the server listens to this machine only.
    Port 0 takes a free one. `unknown` says what happens to characters of a prompt that a model never saw: an error, or
    they are left out. With `studio` its pages are there too, below `/studio`, with the runs of the folder `out`.
    `notice` is told where it listens. docs/server.md has the rest.

    Raises ValueError where that cannot be, FileNotFoundError for a run that is not there, OSError for a port in use.
    """
    key = api_key if api_key is not None else os.environ.get("GROUNDLING_API_KEY")
    if key is not None and not key.strip():
        raise ValueError("--api-key is empty: give a key, or leave the option (and GROUNDLING_API_KEY) out.")
    if slots is not None and not 1 <= slots <= MAX_SLOTS:
        raise ValueError(f"--slots must lie in [1, {MAX_SLOTS}], and it is {slots}.")
    if not runs:
        raise ValueError("Which run? `groundling runs` shows them.")
    with bind(host, port, key) as listener:
        pages = _pages(listener, key, out) if studio else None
        models = open_runs([load(run, out=out) for run in runs], precision, unknown)
        listener.listen(2048)  # from here on nobody is turned away
        address, bound_port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        for model in models:
            notice(f"{model.name}: {model.describe()}")
        if studio:
            notice(f"The studio is at http://{shown}:{bound_port}/studio")
        notice(f"http://{shown}:{bound_port}/v1 answers now; Ctrl-C stops it.")
        try:
            make_server(models, slots or _room(models), listener, host, key, pages).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises the signal again when all is closed
            pass


class _Server(uvicorn.Server):
    """Lets answers that are under way come to their end; those that take too long are told that it is over."""

    def __init__(self, api: Api, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._api = api

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        farewell = asyncio.get_running_loop().call_later(FAREWELL_SECONDS, self._api.close)
        await super().shutdown(sockets)
        farewell.cancel()
        self._api.close()


def make_server(
    models: Sequence[LoadedModel], slots: int, listener: socket.socket, host: str, key: str | None,
    pages: Callable[[FastAPI], ASGIApp] | None = None,
) -> uvicorn.Server:  # fmt: skip
    """The server for a bound socket, not yet running. `pages` may add some to its app, and put something around it."""
    loopback = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    machine = socket.gethostname().lower()
    names = {"localhost"} if loopback else {"localhost", host.lower(), machine, f"{machine}.local"}
    metrics = Metrics()
    api = Api(models, slots, metrics)
    inner = create_app(api)
    whole = pages(inner) if pages else inner
    app = Guard(whole, names=frozenset(names), loopback=loopback, key=key, uploads=pages is not None)
    return _Server(
        api,
        uvicorn.Config(
            counted(app, metrics), http=Connection, log_level="error", access_log=False, server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=2 * FAREWELL_SECONDS, ws_max_size=2**20,
        ),
    )  # fmt: skip


def _pages(
    listener: socket.socket, key: str | None, out: str | os.PathLike[str] | None
) -> Callable[[FastAPI], ASGIApp]:
    """What puts the studio on the server's app. Raises ValueError where it must not, or cannot, be."""
    if key is not None or not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        raise ValueError(
            "The studio starts programs and reads files, and its pages cannot send a key, so --studio goes with this "
            "machine alone and without --api-key. `groundling studio`, beside the server, has the same pages."
        )
    try:
        from groundling.web.studio.app import mount
        from groundling.web.studio.studio import Studio
    except ModuleNotFoundError as error:
        raise ValueError(f'The studio needs {error.name}: pip install "groundling[studio]".') from None
    return lambda app: mount(app, Studio(runs_folder(out)), "/studio")


def _room(models: Sequence[LoadedModel]) -> int:
    """As many texts at a time as a quarter of the free memory holds for each model, at least one."""
    free = psutil.virtual_memory().available / 4 / len(models)
    return max(1, min(MAX_SLOTS, *(int(free // model.bytes_a_text) for model in models)))
