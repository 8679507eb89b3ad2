"""The socket that a server listens at."""

from __future__ import annotations

import ipaddress
import os
import socket


def bind(host: str, port: int, key: str | None) -> socket.socket:
    """A socket bound to `host`, which may be a name. Raises ValueError for one beyond this machine without a key."""
    if not 0 <= port < 2**16:
        raise ValueError(f"--port must lie in [0, 65536), and it is {port}.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]") or "?", port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise ValueError(f"--host {host!r} is no address or name of this machine.") from None
    if key is None and not ipaddress.ip_address(address[0]).is_loopback:
        raise ValueError(
            f"--host {host} is reached from other machines, so it needs --api-key (or GROUNDLING_API_KEY): without "
            "one, anybody in the network could use it."
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # or the port would stay taken for a minute after a stop
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(f"Port {port} of {host} cannot be used ({error.strerror}); choose another with --port.") from None
    return listener
