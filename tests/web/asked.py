"""A real server in a thread, and helpers that send requests to it as clients do."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from openai import OpenAI

from groundling.web.loaded_model import LoadedModel
from groundling.web.server import make_server
from groundling.web.sockets import bind

SLOTS = 16
TINY: dict[str, Any] = {
    "preset": "nano", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 16, "steps": 60,
    "eval_every": 60, "eval_tokens": 512, "checkpoint_every": 30, "sample_tokens": 4, "learning_rate": 1e-2,
    "warmup_steps": 5, "device": "cpu", "dtype": "float32", "on_event": lambda event: None,
}  # fmt: skip


class Answer:
    """A complete response."""

    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, after checking its shape."""
        error = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"]
        return dict(error)


class Server:
    """A running server, and how tests send requests to it."""

    def __init__(self, port: int, key: str | None) -> None:
        self.port, self.key = port, key
        self.url = f"http://127.0.0.1:{port}"

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=self.url + "/v1", api_key=self.key or "none", max_retries=0, timeout=60, **options)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request with http.client. A body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, path, sent, kind | (headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any) -> Answer:
        return self.ask("POST", path, body)

    def connect(self, data: bytes = b"") -> socket.socket:
        """A plain socket, after sending `data`."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        return connection

    def figures(self) -> dict[str, float]:
        """The counters of /metrics, added up over paths, statuses and models."""
        sums: dict[str, float] = {}
        for line in self.ask("GET", "/metrics", headers=self.authorized).body.decode().splitlines():
            if match := re.fullmatch(r"groundling_(\w+?)(?:_total)?\{[^}]*\} (\S+)", line):
                sums[match[1]] = sums.get(match[1], 0) + float(match[2])
        return sums

    @property
    def authorized(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def is_well(self, seconds: float = 20) -> None:
        """Check that the server is healthy and all slots become free."""
        assert self.ask("GET", "/health").status == 200
        wait_for(lambda: (figures := self.figures())["running"] == figures["waiting"] == 0, seconds)


def request(body: bytes, path: str = "/v1/completions") -> bytes:
    """The bytes of a POST request with JSON."""
    length = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode() + body


def wait_for(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


@contextmanager
def serving(
    models: list[LoadedModel], key: str | None = None, slots: int = SLOTS, allowed: Sequence[str] = ()
) -> Iterator[Server]:
    """A new server in a thread of this process."""
    with bind("127.0.0.1", 0, key) as listener:
        server = make_server(models, slots, listener, "127.0.0.1", key, allowed=allowed)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield Server(listener.getsockname()[1], key)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
