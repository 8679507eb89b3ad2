"""The socket that a server listens on, its URL, and how it runs: until a signal, or beside an event loop."""

from __future__ import annotations

import asyncio
import atexit
import ipaddress
import os
import socket
import threading
from contextlib import suppress
from typing import Self

import uvicorn

from groundling.config import limits


def bind(host: str, port: int, key: str | None) -> socket.socket:
    """A socket that listens on `host`, an address or a name. Port 0 picks a free one.

    Clients that connect before the server runs wait for it.

    Raises ValueError for an invalid host or port, and for a host that other machines can reach if there is no `key`.
    Raises OSError if the port is taken.
    """
    limits.PORT.check("--port", port)
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]") or "?", port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise ValueError(f"--host {host!r} is not an address or name of this machine.") from None
    if key is None and not ipaddress.ip_address(address[0]).is_loopback:
        raise ValueError(
            f"--host {host} is open to other machines, so it needs --api-key or GROUNDLING_API_KEY. Without a key, "
            "anyone on the network could use the server."
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # otherwise the port stays taken for a minute after the server stops
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(f"Cannot listen on port {port} of {host} ({error.strerror}). Use another --port.") from None
    return listener


def url(listener: socket.socket) -> str:
    """The address of a bound socket for a browser."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


class BackgroundServer:
    """A server in a thread of its own. `close()`, or the end of a `with` block, stops it and frees its port."""

    def __init__(self, server: uvicorn.Server, listener: socket.socket, url: str) -> None:
        self.url = url
        self._server, self._listener = server, listener
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name=f"server at {url}", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Let unfinished responses end, as after Ctrl-C, and stop. Does nothing if it has stopped."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "is running" if self.alive else "has stopped"
        return f"<{type(self).__name__} at {self.url}, which {state}>"


def in_event_loop() -> bool:
    """Whether an event loop runs in this thread, as in a notebook. A server would block it."""
    with suppress(RuntimeError):
        return bool(asyncio.get_running_loop())
    return False


def run(server: uvicorn.Server, listener: socket.socket, url: str) -> BackgroundServer | None:
    """Run a server until SIGINT or SIGTERM. In an event loop, return it at once, running in a thread."""
    if in_event_loop():
        return BackgroundServer(server, listener, url)
    with listener, suppress(KeyboardInterrupt):  # uvicorn raises the signal again after it has closed everything
        server.run(sockets=[listener])
    return None


def how_to_stop() -> str:
    """What to say about the server that `run` starts."""
    return "in a thread of its own: its close() stops it" if in_event_loop() else "Ctrl-C stops it"
