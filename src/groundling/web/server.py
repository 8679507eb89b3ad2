"""`groundling serve`: load models, listen, and answer requests until a signal comes, or in a thread of its own."""

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
from groundling.config import Limits
from groundling.data.tokenizers.base import Unknown
from groundling.escape import command, printable
from groundling.run.folder import runs_folder
from groundling.run.store import load
from groundling.web.app import Api, create_app
from groundling.web.guard import Guard, allowed_hosts
from groundling.web.loaded_model import LoadedModel, open_runs
from groundling.web.metrics import Metrics, count_responses
from groundling.web.sockets import BackgroundServer, bind, how_to_stop, run, url
from groundling.web.timeouts import uvicorn_config

MAX_SLOTS = 64
GRACE_SECONDS = 5
"""How long unfinished responses may continue after a signal to stop."""


def _print(sentence: str) -> None:
    print(printable(sentence), flush=True)


def serve(
    *runs: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    allow_host: Sequence[str] = (),
    slots: int | None = None,
    precision: Precision = "float32",
    unknown: Unknown = "error",
    studio: bool = False,
    out: str | os.PathLike[str] | None = None,
    notice: Callable[[str], None] = _print,
) -> BackgroundServer | None:
    """Serve runs with an OpenAI-compatible API, until SIGINT or SIGTERM. docs/server.md describes the API.

    Each model is loaded once, so its run may continue to train. In an event loop, as in a notebook, it serves in a
    thread and returns at once, with the server's `url` and `close()`.

    Args:
        runs: names of runs, or paths of runs or checkpoints.
        host: address to listen on. All but loopback addresses need an API key.
        port: 0 picks a free one.
        api_key: the key that clients must send. None: the environment's GROUNDLING_API_KEY, if it is set.
        allow_host: more hosts that clients may use, such as "*.my.example". Needs an API key.
        slots: how many texts each model generates at once. None: as many as fit into memory, up to 64.
        precision: of the weights.
        unknown: what to do with characters of a prompt that the model has never seen: "error", or "skip" them.
        studio: serve the studio's pages below `/studio`, too.
        out: folder of runs. None: `GROUNDLING_RUNS`, or `runs` in the working directory.
        notice: called with lines for the user, such as the server's address.

    Raises ValueError for invalid arguments, FileNotFoundError if there is no such run, OSError if the port is taken.
    """
    key = api_key if api_key is not None else os.environ.get("GROUNDLING_API_KEY")
    if key is not None and not key.strip():
        raise ValueError("The API key is empty. Set --api-key or GROUNDLING_API_KEY to a key, or leave both out.")
    if key is not None:
        key = key.strip()  # as of the keys that clients send
        if not key.isprintable():
            raise ValueError("The API key contains a line break or control character, which no HTTP header can hold.")
    hosts = allowed_hosts(allow_host, key)
    if slots is not None:
        Limits(1, MAX_SLOTS).check("--slots", slots)
    if not runs:
        listing = command("runs", *([] if out is None else ["--out", out]))
        raise ValueError(f"Name a run to serve. `{listing}` lists them.")
    listener = bind(host, port, key)
    try:
        pages = _studio(listener, key, out) if studio else None
        models = open_runs([load(run, out=out) for run in runs], precision, unknown)
        server = make_server(models, slots or _default_slots(models), listener, host, key, pages, hosts)
    except BaseException:
        listener.close()
        raise
    for model in models:
        notice(f"{model.name}: {model.describe()}")
    if studio:
        notice(f"The studio is at {url(listener)}/studio")
    address = f"{url(listener)}/v1"
    notice(f"The API is at {address} ({how_to_stop()})")
    return run(server, listener, address)


class _Server(uvicorn.Server):
    """uvicorn, which lets responses finish after a signal, but stops generation after `GRACE_SECONDS`."""

    def __init__(self, api: Api, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._api = api

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._api.close)
        await super().shutdown(sockets)
        timer.cancel()
        self._api.close()


def make_server(
    models: Sequence[LoadedModel], slots: int, listener: socket.socket, host: str, key: str | None,
    pages: Callable[[FastAPI], ASGIApp] | None = None, allowed: Sequence[str] = (),
) -> uvicorn.Server:  # fmt: skip
    """The server for a bound socket, not yet running. `pages` adds pages to its app, and may wrap the app.

    `allowed` has more hosts that clients may use, checked by `allowed_hosts`.
    """
    loopback = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    machine = socket.gethostname().lower()
    names = {"localhost"} if loopback else {"localhost", host.lower(), machine, f"{machine}.local"}
    metrics = Metrics()
    api = Api(models, slots, metrics)
    inner = create_app(api)
    guarded = Guard(
        pages(inner) if pages else inner, names=frozenset(names), loopback=loopback, key=key, uploads=pages is not None,
        allowed=None if pages else allowed,
    )  # fmt: skip
    counted = count_responses(guarded, metrics)
    return _Server(api, uvicorn_config(counted, log_level="error", grace_seconds=2 * GRACE_SECONDS))


def _studio(
    listener: socket.socket, key: str | None, out: str | os.PathLike[str] | None
) -> Callable[[FastAPI], ASGIApp]:
    """A function that mounts the studio on an app. Raises ValueError if that would be unsafe or NiceGUI is missing."""
    if key is not None or not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        raise ValueError(
            "--studio needs a loopback --host and no API key: the studio starts programs and reads files, and its "
            "pages cannot send a key. Run `groundling studio` beside the server instead."
        )
    try:
        from groundling.web.studio.app import mount
        from groundling.web.studio.studio import Studio
    except ModuleNotFoundError as error:
        raise ValueError(f'The studio needs {error.name}: pip install "groundling[studio]".') from None
    return lambda app: mount(app, Studio(runs_folder(out)), "/studio")


def _default_slots(models: Sequence[LoadedModel]) -> int:
    """As many texts at once as a quarter of the free memory, shared by the models, has room for. At least one."""
    free = psutil.virtual_memory().available / 4 / len(models)
    return max(1, min(MAX_SLOTS, *(int(free // model.cache_bytes) for model in models)))
