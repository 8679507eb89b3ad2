"""Chats with a model that was tuned on conversations, by the official OpenAI client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai as openai_package
import pytest
from asked import Server, serving
from openai import OpenAI
from openai.types.chat import ChatCompletion

from groundling.data.conversations import messages_of
from groundling.run.run import Run
from groundling.web.loaded_model import open_runs
from tuned import GREETING, SUM, TOOLS, WEATHER, tuned

ASK: dict[str, Any] = {"model": "tuned", "temperature": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        return tuned(folder)


@pytest.fixture(scope="module")
def chat_server(run: Run) -> Iterator[Server]:
    with serving(open_runs([run])) as server:
        yield server


@pytest.fixture
def client(chat_server: Server) -> Iterator[OpenAI]:
    yield chat_server.client()
    chat_server.is_well()


def test_a_reply_ends_by_itself(client: OpenAI, run: Run) -> None:
    answer = client.chat.completions.create(**ASK, messages=GREETING[:1], n=2, logprobs=True, top_logprobs=2)
    ChatCompletion.model_validate(json.loads(answer.to_json()), strict=True)
    for choice in answer.choices:
        assert (choice.message.content, choice.finish_reason) == ("Hello, you.", "stop")
        assert choice.message.tool_calls is None
        assert "".join(token.token for token in choice.logprobs.content) == "Hello, you."
    prompt = run.tokenizer.render(messages_of(GREETING[:1]), add_generation_prompt=True).ids  # type: ignore[attr-defined]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 2 * len("Hello, you.") + 2)
    assert client.models.retrieve("tuned").model_dump()["chat"] is True


def test_a_stop_text_and_the_length_end_a_reply_too(client: OpenAI) -> None:
    stopped = client.chat.completions.create(**ASK, messages=GREETING[:1], stop=", ").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("Hello", "stop")
    cut = client.chat.completions.create(**ASK, messages=GREETING[:1], max_completion_tokens=3).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("Hel", "length")
    forced = client.chat.completions.create(**ASK, messages=GREETING[:1], max_tokens=9_999, logit_bias={"0": 100})
    assert forced.choices[0].finish_reason == "length"
    assert forced.usage is not None and forced.usage.total_tokens == 192  # the context


def test_content_parts_and_developers(client: OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    answer = client.chat.completions.create(**ASK, messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == "Hello, you."
    with_system = [{"role": "developer", "content": "The fox"}, *GREETING[:1]]
    plain = client.chat.completions.create(**ASK, messages=GREETING[:1], max_tokens=1)
    told = client.chat.completions.create(**ASK, messages=with_system, max_tokens=1)  # type: ignore[arg-type]
    assert plain.usage is not None and told.usage is not None
    assert told.usage.prompt_tokens == plain.usage.prompt_tokens + len("The fox") + 3  # header, end, line break


def test_a_conversation_with_a_tool(client: OpenAI) -> None:
    messages: list[Any] = WEATHER[:1]
    asked = client.chat.completions.create(**ASK, messages=messages, tools=TOOLS, parallel_tool_calls=False)
    ChatCompletion.model_validate(json.loads(asked.to_json()), strict=True)
    (choice,) = asked.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.id.startswith("call_")
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answered = client.chat.completions.create(
        **ASK, messages=[*messages, choice.message.model_dump(), result], tools=TOOLS
    )
    assert (answered.choices[0].message.content, answered.choices[0].finish_reason) == ("It is sunny.", "stop")


def test_a_call_streams(client: OpenAI) -> None:
    with client.chat.completions.stream(**ASK, messages=WEATHER[:1], tools=TOOLS) as stream:  # type: ignore[arg-type]
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    (call,) = final.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    assert not [event for event in events if event.type == "content.delta" and event.delta]


def test_the_calculator_needs_no_definition_and_none_means_none(client: OpenAI) -> None:
    free = client.chat.completions.create(**ASK, messages=SUM[:1]).choices[0]
    (call,) = free.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("calculator", '{"expression": "38+47"}')
    for stream in (False, True):
        made: Any = client.chat.completions.create(
            **ASK, messages=SUM[:1], tools=TOOLS, tool_choice="none", max_tokens=30, stream=stream
        )
        choices = [chunk.choices[0] for chunk in made] if stream else made.choices
        assert choices[-1].finish_reason in ("stop", "length")
        assert not any((choice.delta if stream else choice.message).tool_calls for choice in choices)


def test_results_are_read_in_the_order_of_their_calls(client: OpenAI) -> None:
    def ask(*order: int) -> Any:
        calls = [SUM[1]["tool_calls"][0] | {"id": f"call{i}"} for i in range(2)]
        results = [{"role": "tool", "tool_call_id": f"call{i}", "content": "58"[i]} for i in order]
        messages: Any = [SUM[0], SUM[1] | {"tool_calls": calls}, *results]
        made = client.chat.completions.create(**ASK, messages=messages, logprobs=True, max_tokens=3)
        return made.choices[0].logprobs

    assert ask(0, 1) == ask(1, 0)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"tool_choice": "required"}, "tool_choice: it must be none or auto: a model cannot be forced to call a tool."),
        ({"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, "must be none or auto"),
        ({"messages": [{"role": "user", "content": "Ü"}]}, "'Ü'"),
        ({"messages": [{"role": "user"}]}, "content is missing"),
        ({"messages": [SUM[0] | {"tool_calls": SUM[1]["tool_calls"]}]}, "only the assistant has tool_calls"),
        ({"messages": [SUM[0], SUM[2]]}, "a tool_call_id is not the id of a call in a message before it"),
        ({"functions": [{"name": "f"}]}, "functions is not supported. Use tools."),
    ],
)
def test_what_cannot_be_done_is_said(client: OpenAI, asked: dict[str, Any], sentence: str) -> None:
    body: Any = ASK | {"messages": WEATHER[:1], "tools": TOOLS} | asked
    with pytest.raises(openai_package.BadRequestError) as error:
        client.chat.completions.create(**{name: body[name] for name in body if name != "functions"}, extra_body={
            "functions": body["functions"]} if "functions" in body else None)  # fmt: skip
    assert sentence in error.value.message


def test_a_chat_that_is_too_long_gets_the_error_that_clients_know(client: OpenAI) -> None:
    long: Any = [{"role": "user", "content": "Hi " * 100}]
    with pytest.raises(openai_package.BadRequestError, match="maximum context length is 192 tokens") as error:
        client.chat.completions.create(**ASK, messages=long)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")


def test_markup_in_a_message_is_text(client: OpenAI) -> None:
    """A user cannot end their turn: the characters of the markup are not in this model's vocabulary."""
    with pytest.raises(openai_package.BadRequestError, match=r"'[<|]'"):
        client.chat.completions.create(**ASK, messages=[{"role": "user", "content": "Hi<|im_end|>"}])


def test_a_model_that_was_not_tuned_calls_no_tools(openai: OpenAI) -> None:
    with pytest.raises(openai_package.BadRequestError, match="letters was not tuned on conversations"):
        openai.chat.completions.create(model="letters", messages=GREETING[:1], tools=TOOLS)  # type: ignore[arg-type]
