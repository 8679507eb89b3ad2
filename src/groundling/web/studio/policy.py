"""The Content Security Policy of the studio's pages: what the browser may run and load.

NiceGUI puts a page's elements into inline scripts, which differ from page to page. The policy allows each by its hash,
and no other script. `unsafe-eval` is needed because NiceGUI compiles its elements' templates in the browser, and inline
styles are needed too. A page can load nothing from, and send nothing to, any other site.
"""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)


class Policy:
    """ASGI middleware that adds its policy to each page. `Guard` adds the other security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. Holds back a page until it is complete, since its hashes go into the headers."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start: list[Message] = []
        body = bytearray()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                if Headers(scope=message).get("content-type", "").startswith("text/html"):
                    start.append(message)
                    return
            elif start:
                body.extend(message.get("body", b""))
                if message.get("more_body", False):
                    return
                MutableHeaders(scope=start[0])["Content-Security-Policy"] = policy(bytes(body))
                await send(start.pop())
                message = {**message, "body": bytes(body)}
            await send(message)

        return await self.app(scope, receive, sending)


def policy(page: bytes) -> str:
    """The policy of a page. It allows the page's own inline scripts."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(code).digest()).decode()}'" for code in _SCRIPT.findall(page)
    )
    return (
        f"default-src 'none'; script-src 'self' 'unsafe-eval' {hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
