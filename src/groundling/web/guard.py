"""What every request passes first: its Host, Origin, key and size are judged before anything of it is parsed.

- Host: a page elsewhere can point a name of its own at 127.0.0.1 (DNS rebinding), and its requests then look local to
  the browser; the name stays in the Host header. Addresses cannot be rebound.
- Origin: browsers say which page sent a request, and only pages of this very server may. No header ever allows others.
- The key, where there is one, is asked for on every path but `/health`, on paths that do not exist too.
- The body is read whole before the app sees any of it, up to a size and within a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundling.web.errors import ApiError, client_left

MAX_BODY = 1 << 20
MAX_UPLOAD = 100 << 20
"""Bytes of a text that comes from a page. A longer one is given by its path."""
MAX_HEADERS = 32 << 10
BODY_SECONDS = 30.0
MAX_DROPPED = 8 << 20
DROP_SECONDS = 2.0
"""How much of a refused body is read and dropped, and for how long, before the answer is sent. A connection that is
closed while its client still sends is lost to it, with the answer that says why."""
OPEN_PATHS = frozenset({"/health"})
"""What may be asked for without the key."""
_UPLOADS = re.compile(r"(/studio)?/_nicegui/client/[^/]+/upload/[^/]+")
"""Where pages send files to: NiceGUI's paths."""

SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?")


class Guard:
    """ASGI middleware around the whole app, websockets and mounted pages included."""

    def __init__(
        self, app: ASGIApp, *, names: frozenset[str], loopback: bool, key: str | None, uploads: bool = False
    ) -> None:
        """`names` are the host names that count as this server's. Of addresses, those of this machine alone do where
        it listens on nothing else (`loopback`), and all do where it listens to the network. With `uploads`, the
        studio's pages may send files."""
        self.app = app
        self.names = names
        self.loopback = loopback
        self.key = key.encode() if key else None
        self.uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with what is wrong."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        safe = _with_safe_headers(send)
        try:
            self.compare_with_plan(scope)
            if scope["type"] == "http":
                upload = self.uploads and _UPLOADS.fullmatch(scope["path"])
                most = MAX_UPLOAD + MAX_BODY if upload else MAX_BODY
                receive = await _whole_body(Headers(scope=scope), receive, most)
        except ApiError as error:
            if scope["type"] == "websocket":  # closed before it was accepted: uvicorn answers 403
                return await send({"type": "websocket.close", "code": 1008})
            if "expect" not in Headers(scope=scope):  # a client that waits to be asked has sent nothing to drop
                await _drop_body(receive)
            return await error.response()(scope, receive, safe)
        return await self.app(scope, receive, safe)

    def compare_with_plan(self, scope: Scope) -> None:
        """Raise the ApiError that answers a request which may not pass."""
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADERS:
            raise ApiError(431, f"The headers are larger than {MAX_HEADERS:,} bytes.")
        host = headers.get("host", "").lower()
        if not self.is_ours(host):
            raise ApiError(403, "The Host header names another server than this one.", code="host_not_allowed")
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{host}", f"https://{host}"):
                raise ApiError(403, "Pages of other sites may not use this server.", code="origin_not_allowed")
        if self.key is None or scope["path"] in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given_bytes = given.strip().encode("latin-1")  # as the bytes came; both sides may hold any character
        if scheme.lower() != "bearer" or not hmac.compare_digest(given_bytes, self.key):
            raise ApiError(
                401, "This server asks for a key, in the header `Authorization: Bearer KEY`.", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def is_ours(self, host: str) -> bool:
        """Whether a Host header, in lower case, names this server."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1] or match[2]
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback


async def _whole_body(headers: Headers, receive: Receive, max_body: int) -> Receive:
    """Read the body; what the app receives is the whole of it, and after that what the connection says (it ended)."""
    too_large = ApiError(413, f"The body is larger than {max_body:,} bytes.", code="request_too_large")
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:20]) > max_body:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise client_left()
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > max_body:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:.0f} seconds.") from None
    whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    return replay


async def _drop_body(receive: Receive) -> None:
    dropped = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DROP_SECONDS):
            while dropped < MAX_DROPPED:
                message = await receive()
                dropped += len(message.get("body", b""))
                if not message.get("more_body", False):  # the body's end, or the client's
                    return


def _with_safe_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SAFE_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
