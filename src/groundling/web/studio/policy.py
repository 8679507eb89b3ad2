"""What the browser may do on the studio's pages, told by a Content Security Policy.

NiceGUI's pages carry their elements in inline scripts, which differ from page to page: each is named by its hash, so
that no other one runs. `unsafe-eval` cannot be left out, since NiceGUI compiles the templates of its elements in the
browser; and neither can inline styles. Nothing can be loaded from, or sent to, anywhere else.
"""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)


class Policy:
    """ASGI middleware: pages get their policy."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; the beginning of a page waits until the whole page is there, to be hashed."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start: list[Message] = []
        body = bytearray()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                if headers.get("content-type", "").startswith("text/html"):
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
    """The policy for a page, with its own inline scripts allowed."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(code).digest()).decode()}'" for code in _SCRIPT.findall(page)
    )
    return (
        f"default-src 'none'; script-src 'self' 'unsafe-eval' {hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
