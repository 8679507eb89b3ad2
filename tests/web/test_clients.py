"""What today's clients send: every field of OpenAI's schema, and habits of clients that other servers tripped over."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asked import Server, request, serving
from openai.types import completion_create_params as completion
from openai.types.chat import completion_create_params as chat

from groundling.web.loaded_model import LoadedModel

Check = Callable[[dict[str, Any]], bool]
SAME = "the same response as without the field"
SAY = [{"role": "user", "content": "The "}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
NO_MEDIA = "is not supported: models read text only."


def choice(answer: dict[str, Any]) -> Any:
    return answer["choices"][0]


def tokens(n: int) -> Check:
    return lambda answer: answer["usage"]["completion_tokens"] == n


def text_is(wanted: Callable[[str], bool]) -> Check:
    return lambda answer: wanted(choice(answer).get("text") or choice(answer)["message"]["content"])


# Each field with values and what follows: SAME, a check of the response, or the beginning of the error's message.
BOTH: dict[str, list[tuple[Any, str | Check]]] = {
    "model": [("letters", SAME), ("gpt-5", "There is no model 'gpt-5'")],
    "frequency_penalty": [(0, SAME), (0.0, SAME), (1.5, tokens(8)), (3, "frequency_penalty: ")],
    "presence_penalty": [(0, SAME), (-2, tokens(8)), (3, "presence_penalty: ")],
    "logit_bias": [({}, SAME), ({"0": -100}, text_is(lambda text: "\n" not in text)), ({"x": 1}, "logit_bias: ")],
    "max_tokens": [(8, SAME), (3, tokens(3)), (-1, "max_tokens: ")],
    "n": [(1, SAME), (2, lambda answer: len(answer["choices"]) == 2), (0, "n: ")],
    "seed": [(1, SAME), (-5, tokens(8))],
    "stop": [([], SAME), ("¤", SAME), (["¤", "§"], SAME), ("e", text_is(lambda text: "e" not in text))],
    "stream_options": [({}, SAME), ({"include_usage": True, "include_obfuscation": False}, SAME)],
    "temperature": [(1, SAME), (0, tokens(8)), (2, tokens(8))],
    "top_p": [(1, SAME), (0.5, tokens(8)), (0, tokens(8)), (1.5, "top_p: ")],
    "user": [("me", SAME)],
    "stream": [(False, SAME)],
}
COMPLETION = BOTH | {
    "prompt": [("The ", SAME), (["The "], SAME), ("", tokens(8))],
    "best_of": [(1, SAME), (2, "best_of must be equal to n")],
    "echo": [(False, SAME), (True, text_is(lambda text: text.startswith("The ")))],
    "logprobs": [(0, lambda answer: len(choice(answer)["logprobs"]["tokens"]) == 8), (21, "logprobs: ")],
    "suffix": [("", SAME), ("end", "suffix is not supported")],
}
CHAT = BOTH | {
    "messages": [(SAY, SAME), ([], "messages: ")],
    "audio": [({"format": "mp3", "voice": "ash"}, "audio is not supported: models write text only")],
    "function_call": [("none", SAME), ("auto", SAME), ({"name": "f"}, "function_call must be none or auto")],
    "functions": [([], SAME), ([{"name": "f"}], "functions is not supported")],
    "logprobs": [(False, SAME), (True, lambda answer: len(choice(answer)["logprobs"]["content"]) == 8)],
    "max_completion_tokens": [(8, SAME), (3, tokens(3))],
    "metadata": [({"a": "b"}, SAME)],
    "modalities": [(["text"], SAME), (["text", "audio"], 'modalities must be ["text"]')],
    "moderation": [({"model": "omni"}, "moderation is not supported")],
    "parallel_tool_calls": [(True, SAME), (False, SAME)],
    "prediction": [({"type": "content", "content": "x"}, SAME)],  # OpenAI's way to be faster, with the same text
    "prompt_cache_key": [("k", SAME)],
    "prompt_cache_options": [({"mode": "implicit"}, SAME)],
    "prompt_cache_retention": [("24h", SAME)],
    "reasoning_effort": [("none", SAME), ("high", SAME)],  # no model here reasons
    "response_format": [({"type": "text"}, SAME), ({"type": "json_object"}, "response_format must have the type text")],
    "safety_identifier": [("k", SAME)],
    "service_tier": [("auto", SAME), ("flex", SAME)],
    "store": [(False, SAME), (True, SAME)],
    "tool_choice": [("none", SAME), ("auto", SAME), ("required", "tool_choice: it must be none or auto")],
    "tools": [([], SAME), ([TOOL], "The model letters was not tuned on conversations")],
    "top_logprobs": [(0, SAME), (3, "top_logprobs needs logprobs")],
    "verbosity": [("medium", SAME), ("low", "verbosity must be medium")],
    "web_search_options": [({}, "web_search_options is not supported")],
}


@pytest.mark.parametrize(
    ("path", "schema", "table", "plain"),
    [
        ("/v1/completions", completion, COMPLETION, {"prompt": "The "}),
        ("/v1/chat/completions", chat, CHAT, {"messages": SAY}),
    ],
    ids=["completions", "chat"],
)
def test_every_field_of_openais_schema(
    server: Server, path: str, schema: Any, table: dict[str, list[tuple[Any, str | Check]]], plain: dict[str, Any]
) -> None:
    fields = schema.CompletionCreateParamsBase.__annotations__ | schema.CompletionCreateParamsStreaming.__annotations__
    assert set(fields) <= set(table)  # a new field needs an entry, and an answer
    plain = plain | {"model": "letters", "max_tokens": 8, "seed": 1}
    usual = choice(server.post(path, plain).json)
    for field, cases in table.items():
        needed = field in ("messages", "prompt")
        for value, outcome in cases if needed else [*cases, (None, SAME)]:
            answer = server.post(path, plain | {field: value})
            what = (field, value, answer.body)
            if callable(outcome):
                assert answer.status == 200 and outcome(answer.json), what
            elif outcome != SAME:
                assert answer.error["message"].startswith(outcome) and answer.status in (400, 404), what
                assert answer.error["param"] == field, what
            elif value is None and field in ("max_tokens", "seed"):  # the default is another one
                assert answer.status == 200, what
            else:
                assert answer.status == 200 and choice(answer.json) == usual, what


def test_as_many_best_ones_as_are_returned(server: Server) -> None:
    body = {"prompt": "The ", "n": 3, "seed": 1, "max_tokens": 4}
    three = server.post("/v1/completions", body | {"best_of": 3}).json["choices"]
    assert three == server.post("/v1/completions", body).json["choices"] and len(three) == 3
    assert server.post("/v1/completions", body | {"best_of": 4}).error["param"] == "best_of"


def test_top_p_0_is_greedy(server: Server) -> None:
    body = {"prompt": "The ", "max_tokens": 12}
    greedy = choice(server.post("/v1/completions", body | {"temperature": 0}).json)["text"]
    assert choice(server.post("/v1/completions", body | {"top_p": 0, "seed": 2}).json)["text"] == greedy


@pytest.mark.parametrize("stream", [False, True])
def test_without_new_tokens_the_prompt_is_scored(server: Server, stream: bool) -> None:
    body = {"prompt": ["The ", "An "], "echo": True, "logprobs": 1, "max_tokens": 0}
    with_one = server.post("/v1/completions", body | {"max_tokens": 1}).json["choices"]
    answer = server.post("/v1/completions", body | {"stream": stream})
    if stream:
        events = [json.loads(event[6:]) for event in answer.body.decode().split("\n\n")[:-2]]
        assert [choice(event)["finish_reason"] for event in events] == [None, None, "length", "length"]
        texts = [choice(event) for event in events[:2]]
    else:
        texts = answer.json["choices"]
        assert answer.json["usage"] == {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
        assert [each["finish_reason"] for each in texts] == ["length", "length"]
    for mine, other, text in zip(texts, with_one, ("The ", "An "), strict=True):
        assert mine["text"] == text
        assert mine["logprobs"]["token_logprobs"] == other["logprobs"]["token_logprobs"][:-1]


def test_the_chosen_token_is_among_the_top_ones(server: Server) -> None:
    body = {"prompt": "The ", "echo": True, "logprobs": 1, "max_tokens": 0}
    told = choice(server.post("/v1/completions", body).json)["logprobs"]
    for token, logprob, top in list(zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True))[1:]:
        assert top[token] == logprob <= max(top.values()) and len(top) in (1, 2)


def chat_text(server: Server, messages: list[dict[str, Any]], **more: Any) -> str:
    answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 8, "seed": 1, **more})
    assert answer.status == 200, answer.body
    return str(choice(answer.json)["message"]["content"])


def test_messages_come_back_as_they_were_received(server: Server) -> None:
    plain = [*SAY, {"role": "assistant", "content": "a"}, {"role": "user", "content": ""}]
    received = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    parts = [{"type": "text", "text": "The", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": " "}]
    want = chat_text(server, plain)
    assert chat_text(server, [*SAY, plain[1] | received, plain[2]]) == want
    assert chat_text(server, [{"role": "user", "content": parts, "name": "me"}, *plain[1:]]) == want
    assert chat_text(server, [{"role": "developer", "content": "The "}, *plain[1:]]) == want
    assert chat_text(server, plain, tools=[TOOL], tool_choice="none") == want


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, f"image_url {NO_MEDIA}"),
        ({"content": [{"type": "input_audio", "input_audio": {}}]}, f"input_audio {NO_MEDIA}"),
    ],
)  # fmt: skip
def test_messages_that_are_not_text_are_refused_by_name(server: Server, message: Any, sentence: str) -> None:
    answer = server.post("/v1/chat/completions", {"messages": [{"role": "user"} | message]})
    assert (answer.status, answer.error["message"], answer.error["param"]) == (400, f"messages: {sentence}", "messages")


@pytest.mark.parametrize(
    "path", ["/v1/completions/", "//v1/completions", "/v1//completions", "/v1/v1/completions", "/completions"]
)
def test_base_urls_of_all_kinds_reach_the_api(server: Server, path: str) -> None:
    want = server.post("/v1/completions", {"prompt": "The ", "seed": 1}).json
    answer = server.post(path, {"prompt": "The ", "seed": 1})
    assert answer.status == 200 and choice(answer.json) == choice(want)


def test_the_body_says_its_encoding(server: Server) -> None:
    assert server.ask("GET", "/v1/models").headers["Content-Type"] == "application/json; charset=utf-8"
    assert server.ask("GET", "/v1/nowhere").headers["Content-Type"] == "application/json; charset=utf-8"


def test_the_end_of_a_document_is_not_part_of_a_message(server: Server) -> None:
    end = {"messages": SAY, "model": "poems", "logit_bias": {"256": 100}, "logprobs": True, "max_tokens": 32_000}
    answer = server.post("/v1/chat/completions", end).json
    assert choice(answer)["logprobs"]["content"] == [] and choice(answer)["message"]["content"] == ""
    assert choice(answer)["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] == 1


def test_paths_and_methods(server: Server) -> None:
    for path in ("/health", "/v1/models", "/v1/models/", "/models", "/v1/models/letters", "/v1/models/letters/"):
        assert server.ask("GET", path).status == 200
        head = server.ask("HEAD", path)
        assert (head.status, head.body) == (200, b"")
    lost = server.ask("GET", "/v1/engines")
    assert lost.status == 404 and "which is below /v1" in lost.error["message"]
    for method in ("GET", "OPTIONS"):
        wrong = server.ask(method, "/v1/completions")
        assert (wrong.status, wrong.headers["Allow"], wrong.error["message"]) == (405, "POST", "This path needs POST.")


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "Application/JSON"}, 200),
        ({"Accept-Encoding": "gzip, deflate, br", "Connection": "keep-alive", "X-Stainless-Lang": "python"}, 200),
        ({"Authorization": "Bearer "}, 200),
        ({"Authorization": "Bearer none", "api-key": "none", "OpenAI-Organization": "", "OpenAI-Project": "p"}, 200),
        ({"Content-Type": "text/plain"}, "The body must be JSON, sent with the header `Content-Type: app"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "The body must be JSON"),
        ({"Content-Type": ""}, "The body must be JSON"),
        ({"Content-Encoding": "gzip"}, "Content-Encoding 'gzip' is not supported. Send the body uncompressed."),
    ],
)  # fmt: skip
def test_headers_of_clients(server: Server, headers: dict[str, str], outcome: Any) -> None:
    body = json.dumps({"prompt": "The ", "max_tokens": 1}).encode()
    answer = server.ask(
        "POST", "/v1/completions", gzip.compress(body) if "Content-Encoding" in headers else body, headers
    )
    assert answer.status == 200 if outcome == 200 else answer.error["message"].startswith(outcome)


def test_a_client_that_waits_before_it_sends_its_body(server: Server) -> None:
    whole = request(b'{"prompt": "The ", "max_tokens": 1}')
    head, body = whole.replace(b"Host:", b"Expect: 100-continue\r\nHost:").split(b"\r\n\r\n")
    with server.connect(head + b"\r\n\r\n") as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_every_event_of_a_stream_is_whole(server: Server, path: str) -> None:
    body = {"prompt": "The "} if path == "/v1/completions" else {"messages": SAY}
    body |= {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3}
    lines = server.post(path, body).body.decode().split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 3
    assert [event["usage"] for event in events[:-1]] == [None] * len(events[:-1])
    assert [choice(event)["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 2) + ["length"]
    assert all(event.keys() >= {"id", "object", "created", "model"} for event in events)
    if "messages" in body:
        assert choice(events[0])["delta"] == {"role": "assistant", "content": ""}


@pytest.fixture(scope="module")
def tunnelled(models: list[LoadedModel]) -> Iterator[Server]:
    with serving(models[:1], key="sesame", allowed=("box", "*.ngrok.app", "::2")) as server:
        yield server


@pytest.mark.parametrize("name", ["Authorization", "authorization", "api-key", "X-API-Key"])
def test_the_key_comes_in_several_headers(tunnelled: Server, name: str) -> None:
    for key, status in (("sesame", 200), ("sesam", 401), ("", 401)):
        for scheme in ("Bearer ", "bearer ", "BEARER  ") if name.lower() == "authorization" else ("",):
            assert tunnelled.ask("GET", "/v1/models", headers={name: scheme + key}).status == status


def test_hosts_that_the_operator_allows_are_answered(tunnelled: Server) -> None:
    for host in ("box", "BOX:8000", "a.ngrok.app", "b.c.ngrok.app:443", "[::2]:8000", "localhost", "127.0.0.1:80"):
        headers = tunnelled.authorized | {"Host": host, "Origin": f"https://{host}"}
        assert tunnelled.ask("GET", "/v1/models", headers=headers).status == 200, host
    for host in ("box.example", "ngrok.app", "evil-ngrok.app", "a.ngrok.app.example", "[::3]"):
        answer = tunnelled.ask("GET", "/v1/models", headers=tunnelled.authorized | {"Host": host})
        name = host.strip("[]")
        assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")
        assert answer.error["message"].endswith(
            f"names {name!r}, not this server. To allow it, add --allow-host {name}"
        )
    assert tunnelled.ask("GET", "/v1/models", headers={"Host": "box"}).status == 401
    foreign = tunnelled.authorized | {"Host": "box", "Origin": "https://other.ngrok.app"}
    assert tunnelled.ask("GET", "/v1/models", headers=foreign).error["code"] == "origin_not_allowed"


def test_without_a_key_the_refusal_names_both_options(server: Server) -> None:
    message = server.ask("GET", "/v1/models", headers={"Host": "host.docker.internal:8000"}).error["message"]
    assert message.endswith("To allow it, add --api-key KEY --allow-host host.docker.internal")
    assert "Use its address" in server.ask("GET", "/v1/models", headers={"Host": "a/b"}).error["message"]
