"""The API, used with the official OpenAI client."""

from __future__ import annotations

import json
from pathlib import Path

import openai as openai_package
import pytest
import torch
from asked import Server, serving
from openai import OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion
from transformers import LlamaConfig, LlamaForCausalLM

import groundling
from foreign_tokenizers import like_llama2, written
from groundling.config import Sampling
from groundling.inference.engine import window_start
from groundling.run.run import Run
from groundling.web.loaded_model import NOT_FOR_CHAT, LoadedModel, open_runs


def test_models_tell_what_they_are(openai: OpenAI) -> None:
    cards = openai.models.list().data
    assert [card.id for card in cards] == ["letters", "poems"]
    card = openai.models.retrieve("letters")
    assert card.owned_by == "groundling" and card.created > 1.7e9
    extra = card.model_dump()
    assert (extra["context"], extra["step"], extra["chat"], extra["note"]) == (32, 60, False, NOT_FOR_CHAT)


def test_a_completion_is_what_the_run_itself_writes(openai: OpenAI, trained: list[Run]) -> None:
    answer = openai.completions.create(model="letters", prompt="The ", max_tokens=40, seed=3, extra_body={"top_k": 9})
    sampling = Sampling(temperature=1.0, top_k=9, seed=3)
    assert answer.choices[0].text == "".join(trained[0].stream("The ", sampling, 40))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 40)
    Completion.model_validate(json.loads(answer.to_json()), strict=True)


def test_prompts_come_as_texts_and_as_ids_and_choices_in_order(openai: OpenAI, server: Server) -> None:
    ids = [server.post("/v1/tokenize", {"prompt": text}).json["tokens"] for text in ("The ", "An ")]
    settings = {"model": "letters", "max_tokens": 6, "n": 2, "seed": 5, "echo": True}
    texts = openai.completions.create(prompt=["The ", "An "], **settings)
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    assert [choice.text[:3] for choice in texts.choices] == ["The", "The", "An ", "An "]
    assert texts.choices[0].text != texts.choices[1].text
    assert texts.usage is not None and texts.usage.prompt_tokens == 7
    same = openai.completions.create(prompt=ids, **settings)
    assert [choice.text for choice in same.choices] == [choice.text for choice in texts.choices]
    single = openai.completions.create(prompt=ids[0], **settings)
    assert [choice.text for choice in single.choices] == [choice.text for choice in texts.choices[:2]]


def test_a_stream_adds_up_to_the_whole(openai: OpenAI) -> None:
    settings = {"model": "poems", "prompt": "🌒", "max_tokens": 60, "seed": 1, "n": 3}
    whole = openai.completions.create(**settings)
    parts = ["", "", ""]
    finish: dict[int, str] = {}
    for chunk in openai.completions.create(**settings, stream=True):
        choice = chunk.choices[0]
        parts[choice.index] += choice.text
        if choice.finish_reason:
            finish[choice.index] = choice.finish_reason
    assert parts == [choice.text for choice in whole.choices]
    assert finish == {choice.index: choice.finish_reason for choice in whole.choices}


def test_a_chat_answers_and_streams(openai: OpenAI) -> None:
    messages = [{"role": "system", "content": "The"}, {"role": "user", "content": [{"type": "text", "text": "An "}]}]
    settings = {"model": "letters", "messages": messages, "max_tokens": 30, "seed": 2, "logprobs": True}
    whole = openai.chat.completions.create(**settings, top_logprobs=3)
    message = whole.choices[0].message
    plain = openai.completions.create(model="letters", prompt="The\nAn ", max_tokens=30, seed=2)
    assert (message.role, message.content) == ("assistant", plain.choices[0].text)
    ChatCompletion.model_validate(json.loads(whole.to_json()), strict=True)
    chunks = list(
        openai.chat.completions.create(**settings, top_logprobs=3, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == message.content
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    streamed = [token for chunk in chunks[1:-1] for token in chunk.choices[0].logprobs.content]
    assert streamed == whole.choices[0].logprobs.content and len(streamed) == 30
    assert all(len(token.top_logprobs) == 3 for token in streamed)


def test_a_chat_without_a_length_writes_a_context(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(model="letters", messages=[{"role": "user", "content": "The "}], seed=1)
    assert answer.usage.completion_tokens == 32


def test_log_probabilities_stand_at_their_characters(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model="letters", prompt="The ", max_tokens=12, temperature=0, logprobs=2, echo=True
    )
    choice = answer.choices[0]
    told = choice.logprobs
    assert [choice.text[offset] for offset in told.text_offset] == told.tokens
    assert told.text_offset[0] == 0
    assert told.token_logprobs[0] is told.top_logprobs[0] is None  # nothing comes before it
    for token, logprob, top in list(zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True))[4:]:
        assert len(top) == 2 and top[token] == logprob == max(top.values())  # greedy
    assert answer.usage.completion_tokens == 12


@pytest.mark.parametrize("stream", [False, True])
def test_a_given_text_is_scored_as_the_run_scores_it(openai: OpenAI, trained: list[Run], stream: bool) -> None:
    """As evaluation harnesses do it."""
    run, text = trained[0], "The one and the other, and what is between them. " * 2  # three windows
    answer = openai.completions.create(
        model="letters",
        prompt=[text, "", "An "],
        max_tokens=1,
        temperature=0,
        logprobs=1,
        echo=True,
        n=2,
        stream=stream,
    )
    chunks = answer if stream else [answer]
    told = [choice for chunk in chunks for choice in chunk.choices if choice.index == 1]
    logprobs = [value for choice in told for value in choice.logprobs.token_logprobs]
    offsets = [value for choice in told for value in choice.logprobs.text_offset]
    ids, size = run.tokenizer.encode(text), run.config.model.block_size
    assert len(logprobs) == len(ids) + 1 and logprobs[0] is None
    assert offsets == list(range(len(ids) + 1))
    for n in (1, 5, size - 1, size, size + 1, len(ids) - 1):
        start = window_start(n - 1, size)
        nats = run.model(torch.tensor([ids[start:n]]))[0, -1].detach().log_softmax(-1)
        assert logprobs[n] == pytest.approx(float(nats[ids[n]]), abs=1e-4)


def test_pieces_of_characters_keep_their_names(openai: OpenAI) -> None:
    answer = openai.completions.create(model="poems", prompt="🌒", max_tokens=8, temperature=0, logprobs=5)
    tokens = answer.choices[0].logprobs.tokens
    as_bytes = [int(token[8:], 16) if token.startswith("bytes:") else ord(token) for token in tokens]
    assert any(token.startswith(r"bytes:\x") for token in tokens)
    assert bytes(as_bytes).decode("utf-8", "ignore") == answer.choices[0].text


def test_it_ends_at_a_stop_text_and_at_a_document(openai: OpenAI) -> None:
    free = openai.completions.create(model="letters", prompt="The ", max_tokens=60, seed=4).choices[0]
    stop = free.text[20:23]
    for stream in (False, True):
        answer = openai.completions.create(
            model="letters", prompt="The ", max_tokens=60, seed=4, stop=["Ü", stop], stream=stream
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
        assert "".join(choice.text for choice in choices) == free.text[: free.text.index(stop)]
        assert choices[-1].finish_reason == "stop"
    end = {"256": 100}  # forces the byte model's end-of-document token
    ended = openai.completions.create(model="poems", prompt="a", logit_bias=end, logprobs=1)
    assert ended.choices[0].text == "" and ended.choices[0].finish_reason == "stop"
    told = ended.choices[0].logprobs
    assert told.tokens == ["<|endoftext|>"] and told.text_offset == [0] and ended.usage.completion_tokens == 1
    assert told.token_logprobs[0] == told.top_logprobs[0]["<|endoftext|>"] < 0


def test_sampling_settings_reach_the_engine(openai: OpenAI) -> None:
    settings = {"model": "letters", "prompt": "The ", "max_tokens": 25, "seed": 6}
    plain = openai.completions.create(**settings).choices[0].text
    for knobs in (
        {"temperature": 0.2}, {"top_p": 0.3}, {"extra_body": {"top_k": 2}}, {"extra_body": {"min_p": 0.6}},
        {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"extra_body": {"repetition_penalty": 5.0}},
    ):  # fmt: skip
        assert openai.completions.create(**settings, **knobs).choices[0].text != plain, knobs
    assert openai.completions.create(**settings).choices[0].text == plain


def test_neutral_fields_are_ignored_and_unsupported_ones_rejected(openai: OpenAI) -> None:
    say = [{"role": "user", "content": "The "}]
    openai.chat.completions.create(
        model="letters", messages=say, max_tokens=1, user="me", metadata={"a": "b"}, response_format={"type": "text"},
        tools=[], store=False,
    )  # fmt: skip
    with pytest.raises(openai_package.BadRequestError, match="response_format must have the type text"):
        openai.chat.completions.create(model="letters", messages=say, response_format={"type": "json_object"})
    image = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]
    with pytest.raises(openai_package.BadRequestError, match="messages"):
        openai.chat.completions.create(model="letters", messages=[{"role": "user", "content": image}])


def test_errors_are_those_of_the_client(openai: OpenAI, models: list[LoadedModel]) -> None:
    with pytest.raises(openai_package.NotFoundError) as unknown:
        openai.completions.create(model="gpt-5", prompt="a")
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai_package.BadRequestError, match="'Ü'") as strange:
        openai.completions.create(model="letters", prompt="Ü")
    assert strange.value.param == "prompt"
    with pytest.raises(openai_package.BadRequestError, match=r"Token ids must lie in \[0, 257\)"):
        openai.completions.create(model="poems", prompt=[257])
    with pytest.raises(openai_package.BadRequestError, match=r"Token ids must lie in \[0, 257\)"):
        openai.completions.create(model="poems", prompt="a", logit_bias={"257": 1})
    with serving(models, key="sesame") as guarded:
        assert guarded.client().models.list().data[0].id == "letters"
        with pytest.raises(openai_package.AuthenticationError):
            OpenAI(base_url=guarded.url + "/v1", api_key="wrong").models.list()


def test_tokens_go_there_and_back(server: Server) -> None:
    text = "Über 行🌒"
    there = server.post("/v1/tokenize", {"model": "poems", "prompt": text}).json
    assert there["tokens"] == list(text.encode()) and there["count"] == len(there["tokens"])
    back = server.post("/v1/detokenize", {"model": "poems", "tokens": there["tokens"]})
    assert back.json == {"prompt": text}
    assert server.post("/v1/tokenize", {"prompt": ""}).json["tokens"] == []
    assert server.post("/v1/detokenize", {"model": "poems", "tokens": [257]}).error["param"] == "tokens"


def test_the_default_length_of_a_chat_is_within_the_limit(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the context is: leaving out max_tokens is not an error."""
    from groundling.web import app

    monkeypatch.setattr(app, "MAX_OUTPUT", 40)
    ask = {"model": "letters", "messages": [{"role": "user", "content": "The "}], "seed": 1, "n": 2}
    assert openai.chat.completions.create(**ask).usage.completion_tokens == 40
    with pytest.raises(openai_package.BadRequestError, match="lower max_tokens"):
        openai.chat.completions.create(**ask, max_tokens=30)


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_do_not_count_the_space_that_a_tokenizer_puts_before_a_text(
    tmp_path: Path, prose: str, stream: bool
) -> None:
    folder = written(tmp_path / "theirs", like_llama2(prose))
    kind = LlamaConfig(
        vocab_size=700, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )  # fmt: skip
    LlamaForCausalLM(kind).save_pretrained(folder)
    run = groundling.import_model(folder, block_size=32, out=tmp_path / "runs")
    with serving(open_runs([run])) as server:
        made = server.client().completions.create(
            model=run.name, prompt="The one", max_tokens=1, echo=True, logprobs=0, stream=stream
        )
    told = [chunk.choices[0].logprobs for chunk in (made if stream else [made])]
    tokens, offsets = ([value for each in told for value in getattr(each, key)] for key in ("tokens", "text_offset"))
    ids = [*run.tokenizer.start_ids, *run.tokenizer.encode("The one")]
    ends = [len(run.tokenizer.decode(ids[:i])) for i in range(len(ids) + 1)]
    assert len(tokens) == len(ids) + 1 and offsets == ends and ends[-1] == 7
