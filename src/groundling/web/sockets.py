"""The socket that a server listens on, and its URL."""

from __future__ import annotations

import ipaddress
import os
import socket


def bind(host: str, port: int, key: str | None) -> socket.socket:
    """A socket bound to `host`, an address or a name. Port 0 picks a free one.

    Raises ValueError for an invalid host or port, and for a host that other machines can reach if there is no `key`.
    Raises OSError if the port is taken.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port must be in [0, 65536), not {port}.")
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
    except OSError as error:
        listener.close()
        raise OSError(f"Cannot listen on port {port} of {host} ({error.strerror}). Use another --port.") from None
    return listener


def url(listener: socket.socket) -> str:
    """The address of a bound socket for a browser."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"
