"""Requests generated from the server's schema, valid and invalid, and random bytes never make the server fail."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

import pytest
import requests
import schemathesis
from asked import Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from groundling.web.schemas import MAX_TOKENS

FEW, MANY = 24, 1_000


def short(body: Any) -> None:
    """Lower valid lengths to save time. Invalid ones stay invalid."""
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name) if isinstance(body, dict) else None
        if type(value) is int and value > 3:
            body[name] = 3 if value <= MAX_TOKENS else value


def without_tools(body: dict[str, Any]) -> None:
    """A model that was not tuned on conversations calls none."""
    body.pop("tools", None)
    for message in body.get("messages", []):
        for name in ("tool_calls", "tool_call_id"):
            message.pop(name, None)


def operations(server: Server) -> list[Any]:
    schema = server.ask("GET", "/openapi.json").json
    return [result.ok() for result in schemathesis.openapi.from_dict(schema).get_all_operations()]


def fuzz_one(server: Server, operation: Any, mode: GenerationMode, examples: int, statuses: Counter[Any]) -> None:
    session = requests.Session()

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        short(case.body)
        if mode.is_positive and isinstance(case.body, dict):
            without_tools(case.body)
            if case.body.get("model"):
                case.body["model"] = "poems"  # it can encode every character
        if mode.is_positive and case.query.get("model"):
            case.query["model"] = "poems"
        response = case.call(base_url=server.url, session=session, timeout=60)
        assert response.status_code < 500, (case.as_curl_command()[:2000], response.text)
        if response.status_code >= 400:
            assert response.json()["error"].keys() == {"message", "type", "param", "code"}
        statuses[operation.path, response.status_code] += 1

    send()


def fuzz(server: Server, examples: int) -> Counter[tuple[str, int]]:
    """Send this many requests to each endpoint, half of them invalid if it has a body. Returns the statuses."""
    statuses: Counter[tuple[str, int]] = Counter()
    for operation in operations(server):
        modes = list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]
        for mode in modes:
            fuzz_one(server, operation, mode, examples // len(modes), statuses)
    return statuses


def test_a_few_requests_to_each_endpoint(server: Server) -> None:
    statuses = fuzz(server, FEW)
    assert {path for path, status in statuses if status == 200} >= {
        operation.path for operation in operations(server) if not operation.path_parameters
    }
    assert {path for path, status in statuses if status == 400} >= {"/v1/completions", "/v1/chat/completions"}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_requests_to_each_endpoint(server: Server) -> None:
    statuses = fuzz(server, MANY)
    print(sorted(statuses.items()))
    for operation in operations(server):
        sent = sum(count for (path, _), count in statuses.items() if path == operation.path)
        assert sent >= (MANY if operation.body else 1), operation.path


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=300), path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/tokenize"]))
def test_bytes_of_any_kind_are_no_request(shared_server: Server, body: bytes, path: str) -> None:
    answer = shared_server.post(path, body)
    assert answer.status == 400 and answer.error


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.binary(max_size=200) | st.text(max_size=60).map(lambda t: f"GET /{t} HTTP/1.1\r\nHost: {t}\r\n".encode())
)
def test_bytes_of_any_kind_are_no_http(shared_server: Server, data: bytes) -> None:
    with shared_server.connect(data + b"\r\n\r\n") as client:
        client.shutdown(socket.SHUT_WR)
        try:
            answer = client.recv(100)
        except ConnectionResetError:
            answer = b""
    assert answer == b"" or answer.split()[1] in (b"400", b"403", b"431", b"501", b"505")
