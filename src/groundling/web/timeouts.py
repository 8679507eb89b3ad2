"""HTTP/1.1 connections that cannot stay open forever, whatever the client does.

uvicorn's settings are not enough. `timeout_keep_alive` only covers the time between two requests, so headers that never
end, or a client that never reads, hold a connection forever. `limit_concurrency` lets connections without a request
pile up. Malformed HTTP always gets status 400, as plain text.
"""

from __future__ import annotations

import asyncio
import json
import sys

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from groundling.web.errors import error_body
from groundling.web.guard import MAX_HEADERS

HEADER_SECONDS = 10.0
STALLED_SECONDS = 30.0  # how long sent bytes may stay unread
MAX_CONNECTIONS = 1_000


def uvicorn_config(app: ASGIApp, *, log_level: str, grace_seconds: int) -> uvicorn.Config:
    """The settings of every server. Unfinished responses may continue for `grace_seconds` after a signal to stop."""
    return uvicorn.Config(
        app, http=Connection, log_level=log_level, access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=grace_seconds, ws_max_size=2**20, h11_max_incomplete_event_size=MAX_HEADERS,
    )  # fmt: skip


class Connection(H11Protocol):
    """uvicorn's connection with a deadline for headers and for reading, a connection limit, and errors as JSON."""

    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            transport.set_write_buffer_limits(high=0)  # so that writing is paused while any byte is unsent
            self._headers_due = self.loop.call_later(HEADER_SECONDS, self._headers_late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # the headers are complete
            self._headers_due = _cancel(self._headers_due)
        elif self._headers_due is None:  # the next request on this connection begins
            self._headers_due = self.loop.call_later(HEADER_SECONDS, self._headers_late)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_due = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading_due = _cancel(self._reading_due)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._headers_due, self._reading_due = _cancel(self._headers_due), _cancel(self._reading_due)

    def send_400_response(self, msg: str) -> None:
        error = sys.exc_info()[1]  # uvicorn calls this while it handles h11's error, which tells 431 and 501 from 400
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(status, str(error) if error else msg)

    def _headers_late(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, f"The headers did not arrive within {HEADER_SECONDS:.0f} seconds.")

    def _refuse(self, status: int, message: str) -> None:
        """Send an error for something that never became a request, and close the connection."""
        body = json.dumps(error_body(status, message)).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else a response has already begun
            response = h11.Response(status_code=status, headers=headers, reason=b"")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
