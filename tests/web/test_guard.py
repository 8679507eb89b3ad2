"""Requests that are rejected: foreign hosts and origins, a missing key, and sizes beyond the limits."""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
from collections.abc import Iterator

import pytest
from asked import Server, request, serving, wait_for

from groundling.web import guard
from groundling.web import timeouts as connection
from groundling.web.guard import SECURITY_HEADERS, Guard
from groundling.web.loaded_model import LoadedModel
from groundling.web.schemas import MAX_TOKENS

SAY = {"prompt": "The ", "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded(models: list[LoadedModel]) -> Iterator[Server]:
    with serving(models[:1], key="schlüssel") as server:
        yield server


def test_only_names_of_this_machine_are_answered(server: Server) -> None:
    for host in ("127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:8000", "127.3.2.1:80", "localhost.", "[0::1]"):
        assert server.ask("GET", "/v1/models", headers={"Host": host}).status == 200, host
    for host in (
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.0.7", "[::2]",
        "localhost@evil.example", "evil.example#localhost", "", "localhost:", "localhost:8000:1", "0x7f.1",
    ):  # fmt: skip
        answer = server.ask("GET", "/v1/models", headers={"Host": host})
        assert (answer.status, answer.error["code"]) == (403, "host_not_allowed"), host


def test_an_allowed_host_is_compared_in_its_usual_form() -> None:
    allowed = guard.allowed_hosts(["My.Example.", "*.ngrok.app", "[FD00:0::1]"], "k")
    mine = Guard(lambda *_: None, names=frozenset(), loopback=True, key="k", allowed=allowed)  # type: ignore[arg-type, return-value]
    assert all(map(mine.is_own_host, ("my.example:80", "my.example.", "a.ngrok.app.", "[fd00::1]", "[fd00:0:0::1]:80")))
    assert not any(map(mine.is_own_host, ("ngrok.app", "a.my.example", "[fd00::2]")))


def test_a_server_of_the_network_answers_to_its_addresses_and_names() -> None:
    network = Guard(lambda *_: None, names=frozenset({"box", "localhost"}), loopback=False, key="k")  # type: ignore[arg-type, return-value]
    assert all(map(network.is_own_host, ("192.168.0.7:8000", "[2001:db8::1]", "box", "box:80", "127.0.0.1")))
    assert not any(map(network.is_own_host, ("evil.example", "box.evil.example", "")))


def test_pages_of_other_sites_generate_nothing(server: Server) -> None:
    own = f"127.0.0.1:{server.port}"
    before = server.figures()["generated_tokens"]
    for origin in (
        "https://evil.example",
        "null",
        "",
        "http://localhost",
        f"http://127.0.0.1:{server.port + 1}",
        "file://",
    ):
        for kind in ("application/json", "text/plain"):  # the latter needs no preflight
            headers = {"Origin": origin, "Content-Type": kind}
            answer = server.ask("POST", "/v1/completions", json.dumps(SAY).encode(), headers)
            assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed"), origin
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert server.ask("OPTIONS", "/v1/completions", headers=preflight).status == 403
    assert server.figures()["generated_tokens"] == before
    answer = server.ask("POST", "/v1/completions", json.dumps(SAY).encode(), {"Origin": f"http://{own}"})
    assert answer.status == 200
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_a_simple_post_is_not_read_as_json(server: Server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = server.ask("POST", "/v1/completions", json.dumps(SAY).encode(), {"Content-Type": kind})
        assert answer.status == 400 and answer.error["message"]


def test_every_route_asks_for_the_key(guarded: Server) -> None:
    schema = guarded.ask(
        "GET", "/openapi.json", headers={"Authorization": "Bearer schlüssel".encode().decode("latin-1")}
    )
    paths = [re.sub(r"\{.*\}", "letters", path) for path in schema.json["paths"]]
    assert len(paths) == 9
    for path in [*paths, "/openapi.json", "/docs", "/redoc", "/", "/nowhere", "//health", "/health/", "/v1/../health"]:
        for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
            for given in (
                None,
                "Bearer",
                "Bearer x",
                "Basic schlüssel",
                "schlüssel",
                "Bearer schlüssel2",
                "Bearer \xff",
            ):
                headers = {"Authorization": given.encode("latin-1").decode("latin-1")} if given else {}
                answer = guarded.ask(method, path, headers=headers)
                if path == "/health":
                    assert answer.status in (200, 405)
                else:
                    assert answer.status == 401, (method, path, given)
                    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_every_answer_is_harmless_in_a_browser(server: Server, guarded: Server) -> None:
    answers = [
        server.ask("GET", "/health"), server.ask("GET", "/nowhere"), server.ask("DELETE", "/v1/models"),
        server.post("/v1/completions", SAY), server.post("/v1/completions", SAY | {"stream": True}),
        server.post("/v1/completions", {}), server.ask("GET", "/metrics", headers={"Host": "evil"}),
        guarded.ask("GET", "/v1/models"), server.post("/v1/completions", {"prompt": "<script>alert(1)</script>"}),
    ]  # fmt: skip
    for answer in answers:
        assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert answer.headers["Content-Type"].split(";")[0] in ("application/json", "text/event-stream")
        assert "server" not in answer.headers


def test_errors_of_every_kind_have_one_shape(server: Server) -> None:
    assert (answer := server.ask("GET", "/v1/nowhere")).status == 404 and answer.error
    assert (answer := server.ask("GET", "/v1/completions")).status == 405 and answer.error
    assert (answer := server.ask("GET", "/v1/models/no/such")).status == 404 and answer.error[
        "code"
    ] == "model_not_found"
    assert (answer := server.ask("POST", "/v1/completions", b"{")).status == 400 and "not valid JSON" in answer.error[
        "message"
    ]
    for body, said in (
        ([], "The body must be a JSON object."),
        (None, "The body must be a JSON object."),
        ({}, "messages is missing."),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
         "messages.1.content is missing."),
    ):  # fmt: skip
        answer = server.post("/v1/chat/completions", json.dumps(body).encode())
        assert (answer.status, answer.error["message"]) == (400, said)
    for body in ([], 7, None, "x", {"prompt": 7}, {"prompt": "a", "nonsense": 1}, {"prompt": "a", "temperature": "1"}):
        assert (answer := server.post("/v1/completions", json.dumps(body).encode())).status == 400 and answer.error


@pytest.mark.parametrize(
    "said",
    [
        '"n": 1000000000', '"n": 65', '"n": 0', '"n": -1', '"n": 1.5', '"n": true', '"n": "2"', '"n": ' + "9" * 5000,
        f'"max_tokens": {MAX_TOKENS + 1}', '"max_tokens": -1', '"max_tokens": 1e309', '"temperature": 1e309',
        '"temperature": -1', '"temperature": NaN', '"temperature": Infinity', '"top_p": -0.1', '"top_p": 1e309',
        '"logit_bias": {"5": 1e309}', '"logit_bias": {"-1": 1}', '"logit_bias": {"x": 1}', '"logit_bias": {"91000": 1}',
        '"logit_bias": {"0": 0' + "".join(f', "{i}": 0' for i in range(1, 1025)) + "}", '"seed": 1e400',
        f'"seed": {2**63}',
        '"stop": ""', '"stop": ["a","a","a","a","a","a","a","a","a"]', f'"stop": "{"a" * 257}"',
        '"prompt": []', '"prompt": [[]]', '"prompt": [-1]', '"prompt": [91000]', '"prompt": [1.5]', '"prompt": [true]',
        '"prompt": [1' + ", 1" * 100_000 + "]", '"prompt": ["a"' + ', "a"' * 64 + "]",
        '"n": 64, "max_tokens": 1025', '"max_tokens": 16384, "logprobs": 4',
        f'"prompt": "{"a" * 20_000}", "n": 64, "echo": true',
        '"prompt": ["a", "b", "c"], "n": 22', r'"prompt": "\u0000"', r'"prompt": "\ud800"', r'"stop": "\udfff\ud800"',
        '"prompt": ' + "[" * 100_000 + "]" * 100_000, '"logprobs": 21', '"stream": 1', '"stream_options": {"x": 1}',
        '"repetition_penalty": 0', '"presence_penalty": 2.1', '"frequency_penalty": -1e309', '"top_k": -1',
        '"min_p": 1.1', '"best_of": 100000', '"suffix": "x"', '"model": 7',
        ", ".join(f'"x{i}": 0' for i in range(60_000)),
    ],
    ids=lambda said: said[:30],
)  # fmt: skip
def test_values_out_of_range_are_rejected_with_the_name_of_the_field(server: Server, said: str) -> None:
    prompt = "" if '"prompt"' in said else '"prompt": "The ", '
    answer = server.ask("POST", "/v1/completions", f"{{{prompt}{said}}}".encode())
    assert answer.status == 400 and len(answer.error["message"]) < 500
    named = re.match(r'"(\w+)"', said)
    if answer.error["param"] is not None and named:
        assert named[1] == answer.error["param"] or answer.error["param"] in said


@pytest.mark.parametrize(
    "body", [b'{"prompt": "\xff"}', b'{"prompt": "\xed\xa0\x80"}', b"\x00", b"\xef\xbb\xbf{}", b""]
)
def test_invalid_utf_8_is_not_json(server: Server, body: bytes) -> None:
    answer = server.ask("POST", "/v1/completions", body)
    assert answer.status == 400 and answer.error


def test_smallest_temperatures_and_largest_numbers_generate(server: Server) -> None:
    for knobs in (
        {"temperature": 5e-324}, {"temperature": 1e-30, "top_p": 1e-300}, {"temperature": 100, "top_k": 2**31},
        {"repetition_penalty": 100, "presence_penalty": 2, "frequency_penalty": 2}, {"repetition_penalty": 0.01},
        {"logit_bias": {str(i): -100 for i in range(91)}}, {"min_p": 1, "top_k": 1}, {"seed": -(2**63), "n": 3},
    ):  # fmt: skip
        answer = server.post("/v1/completions", SAY | {"logprobs": 20} | knobs)
        assert answer.status == 200, (knobs, answer.body)


def test_large_bodies_are_refused_before_they_are_there(server: Server) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Type: application/json\r\n"
    with server.connect(f"{head}Content-Length: 10000000\r\n\r\n".encode()) as client:  # without sending any of it
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    for length in ("1" * 30, "9" * 19):
        with server.connect(f"{head}Content-Length: {length}\r\n\r\n".encode()) as client:
            assert client.recv(1000).startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
    with server.connect(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()) as client:
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(30):
                client.sendall(piece)
        except OSError:
            pass  # the server closed the connection
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_sends_before_it_reads_learns_why_it_was_refused(server: Server, guarded: Server) -> None:
    body = json.dumps(SAY | {"prompt": "x" * (4 << 20)}).encode()
    for there, status in ((server, 413), (guarded, 401)) * 5:
        answer = there.ask("POST", "/v1/completions", body, {"Connection": "close"})
        assert answer.status == status
    waiting = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
    )
    with server.connect(waiting) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_large_headers_are_refused(server: Server) -> None:
    for headers in ([("X", "a" * 10_000_000)], [("X", "a" * 40_000)], [(f"X{i}", "a" * 100) for i in range(500)]):
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        with server.connect() as client:
            try:
                client.sendall(f"GET /health HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
            except OSError:
                pass  # rejected while it was being sent
            try:
                answer = client.recv(1000)
            except ConnectionResetError:
                answer = b"HTTP/1.1 431 "  # the response was lost with the connection
        assert answer.startswith(b"HTTP/1.1 431 ")
    target = "/" + "a" * 100_000
    with server.connect(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n".encode()) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 431 ")


def test_headers_within_the_limit_may_come_in_pieces(server: Server) -> None:
    with server.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 25_000) as client:
        time.sleep(0.1)
        client.sendall(b"a" * 5_000 + b"\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_malformed_http_gets_an_error_of_the_same_shape(server: Server) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        with server.connect(data) as client:
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert answer.status in (400, 403, 505), data
            assert json.loads(answer.read())["error"]["message"]


def test_a_websocket_is_refused(guarded: Server) -> None:
    key = base64.b64encode(bytes(16)).decode()
    lines = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    with guarded.connect(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode()) as client:
        assert client.recv(1000).split()[1] in (b"401", b"403")


def test_slow_headers_time_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    slow = [server.connect(b"GET /health HTTP/1.1\r\nHost: loc") for _ in range(20)] + [server.connect()]
    assert server.ask("GET", "/health").status == 200
    for client in slow:
        with client:
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 408 ")
    with server.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as client:
        answer = client.recv(1000)
        while not answer.endswith(b"}"):
            answer += client.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200 ")
        client.sendall(b"GET /he")  # the second one is slow
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 408 ")


def test_a_slow_body_times_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9"
    with server.connect(f"{head}\r\n\r\n{{".encode()) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_never_reads_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED_SECONDS", 0.3)
    many = json.dumps({"tokens": list(range(32, 80)) * 2000}).encode()
    data = request(many, "/v1/detokenize")
    with server.connect() as client:
        client.settimeout(0.5)
        try:
            while True:  # send requests and read nothing
                client.sendall(data)
        except OSError:
            pass
        client.settimeout(20)
        wait_for(lambda: _is_closed(client))


def _is_closed(client: object) -> bool:
    try:
        client.sendall(b"x")  # type: ignore[attr-defined]
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def test_the_number_of_connections_is_limited(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 5)
    held = [server.connect() for _ in range(10)]
    closed = 0
    for client in held:
        client.settimeout(0.3)
        try:
            closed += client.recv(10) == b""
        except TimeoutError:
            pass
        except ConnectionResetError:
            closed += 1
    assert closed >= 5
    for client in held:
        client.close()
    monkeypatch.undo()
    wait_for(lambda: server.ask("GET", "/health").status == 200)
