"""Checks that every request must pass before any of it is parsed: Host, Origin, API key and size.

- Host: a web page can point its own domain at 127.0.0.1 (DNS rebinding). The browser then treats its requests as local,
  but the Host header still names that domain. IP addresses cannot be rebound. With an API key, the operator can allow
  more names, such as that of a container or tunnel: a page that rebinds its domain does not know the key.
- Origin: a browser says which page sent a request. Only pages of this server may. No response allows other origins.
- API key: if there is one, every path but `/health` needs it, even a path that does not exist.
- Size: the body is read in full before the app sees it, up to a size and within a time. uvicorn has no such limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundling.web.errors import ApiError, client_disconnected

MAX_BODY = 1 << 20
MAX_UPLOAD = 100 << 20
"""Bytes of a text uploaded in the studio. A larger one can be given by its path."""
MAX_HEADERS = 32 << 10
BODY_SECONDS = 30.0
MAX_DISCARDED = 8 << 20
DISCARD_SECONDS = 2.0
"""How much of a rejected body is read and discarded, and for how long, before the error is sent. A client still sending
when the connection closes would lose the error."""
PUBLIC_PATHS = frozenset({"/health"})
"""Paths that need no key."""
_UPLOADS = re.compile(r"(/studio)?/_nicegui/client/[^/]+/upload/[^/]+")
"""NiceGUI's paths for uploads."""

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?")
_ALLOWED_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_-][a-z0-9._-]*")


def allowed_hosts(given: Sequence[str], key: str | None) -> tuple[str, ...]:
    """The values of `--allow-host` in lower case. Raises ValueError if one is not a host, or there is no API key."""
    hosts = tuple(_plain(host.lower().strip("[]")) for host in given)
    for host, original in zip(hosts, given, strict=True):
        if not _ALLOWED_NAME.fullmatch(host) and _address(host) is None:
            raise ValueError(
                f"--allow-host {original!r} is not a host. Give a name or IP address without scheme and port, such as "
                "my.example, *.my.example for all names below it, or * for all hosts."
            )
    if hosts and key is None:
        raise ValueError(
            "--allow-host needs --api-key or GROUNDLING_API_KEY. Without a key, any web page that takes such a name "
            "could use the server."
        )
    return hosts


class Guard:
    """ASGI middleware around the whole app, including WebSockets and mounted pages."""

    def __init__(
        self, app: ASGIApp, *, names: frozenset[str], loopback: bool, key: str | None, uploads: bool = False,
        allowed: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            names: host names of this server.
            loopback: the server listens on a loopback address, so no other IP address is accepted as its Host.
            key: the API key, if clients need one.
            uploads: allow the studio's large uploads.
            allowed: more hosts, checked by `allowed_hosts`. None: this server has no option for them.
        """
        self.app = app
        self.names = names
        self.loopback = loopback
        self.key = key.encode() if key else None
        self.uploads = uploads
        self.allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with an error."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        send_safely = _with_security_headers(send)
        try:
            self.check_headers(scope)
            if scope["type"] == "http":
                upload = self.uploads and _UPLOADS.fullmatch(scope["path"])
                receive = await _read_body(scope, receive, MAX_UPLOAD + MAX_BODY if upload else MAX_BODY)
        except ApiError as error:
            if scope["type"] == "websocket":  # not accepted yet, so uvicorn answers with 403
                return await send({"type": "websocket.close", "code": 1008})
            if "expect" not in Headers(scope=scope):  # a client that expects `100 Continue` has not sent its body
                await _discard_body(receive)
            return await error.response()(scope, receive, send_safely)
        return await self.app(scope, receive, send_safely)

    def check_headers(self, scope: Scope) -> None:
        """Raise ApiError if the headers are too large, name a foreign Host or Origin, or lack the key."""
        headers = Headers(scope=scope)
        # h11's limit is for incomplete headers only. Those that arrive in one packet can be larger.
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADERS:
            raise ApiError(431, f"The headers are larger than {MAX_HEADERS:,} bytes.")
        host = headers.get("host", "").lower()
        if not self.is_own_host(host):
            raise ApiError(403, self._foreign_host(host), code="host_not_allowed")
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{host}", f"https://{host}"):
                raise ApiError(403, "Pages of other sites may not use this server.", code="origin_not_allowed")
        if self.key is None or scope["path"] in PUBLIC_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        keys = [given] if scheme.lower() == "bearer" else []
        keys += [headers[name] for name in ("api-key", "x-api-key") if name in headers]  # Azure's clients, and others
        # Compare bytes as sent: keys may hold any character.
        if not any(hmac.compare_digest(each.strip().encode("latin-1"), self.key) for each in keys):
            raise ApiError(
                401, "Missing or wrong API key. Send it in the header `Authorization: Bearer KEY`.",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def is_own_host(self, host: str) -> bool:
        """Whether a Host header, in lower case, names this server."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = _plain(match[1] or match[2])
        if name in self.names or any(_matches(name, pattern) for pattern in self.allowed or ()):
            return True
        address = _address(name)
        return address is not None and (address.is_loopback or not self.loopback)

    def _foreign_host(self, host: str) -> str:
        """What to say to a request whose Host header does not name this server."""
        match = _HOST.fullmatch(host)
        if match is None or self.allowed is None:
            return "The Host header does not name this server. Use its address as it was printed at the start."
        need = "" if self.key else "--api-key KEY "
        name = _plain(match[1] or match[2])[:253]
        return f"The Host header names {name!r}, not this server. To allow it, add {need}--allow-host {name}"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def _plain(host: str) -> str:
    """A host in its usual form: an IP address in its shortest, a name without the dot of its root."""
    return str(_address(host) or host.removesuffix("."))


def _matches(name: str, pattern: str) -> bool:
    """Whether a host name matches one of `--allow-host`."""
    return pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))


async def _read_body(scope: Scope, receive: Receive, max_body: int) -> Receive:
    """Read the whole body. Returns a `receive` that gives it to the app at once.

    Raises ApiError if it is larger than `max_body` bytes, or takes too long.
    """
    too_large = ApiError(413, f"The body is larger than {max_body:,} bytes.", code="request_too_large")
    if int(Headers(scope=scope).get("content-length", "0")) > max_body:  # h11 has checked that it is a number
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise client_disconnected()
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > max_body:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:.0f} seconds.") from None
    complete: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replay() -> Message:
        return complete.pop() if complete else await receive()

    return replay


async def _discard_body(receive: Receive) -> None:
    discarded = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while discarded < MAX_DISCARDED:
                message = await receive()
                discarded += len(message.get("body", b""))
                if not message.get("more_body", False):  # the end of the body, or the client disconnected
                    return


def _with_security_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if headers.get("content-type") == "application/json":  # some clients take it for Latin-1 otherwise
                headers["content-type"] = "application/json; charset=utf-8"
        await send(message)

    return sending
