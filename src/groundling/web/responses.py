"""Chunks of generated text in, OpenAI's JSON out: complete, or streamed."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from groundling.data.conversations import ToolCall
from groundling.data.tokenizers.base import END_OF_TEXT, Tokenizer
from groundling.inference.engine import GeneratedToken
from groundling.web.batching import Chunk, Chunks
from groundling.web.errors import ApiError, error_body

UNLIKELY = -9999.0
"""OpenAI's log probability for a probability of zero, since JSON has no infinity."""


@dataclass
class ResponseFormat:
    """How the response to one request is written: as a chat or a completion, and what it repeats of the prompts.

    `echo` has the beginning of each text, and `echo_tokens` its tokens if their log probabilities were requested.
    """

    chat: bool
    model: str
    tokenizer: Tokenizer
    prompt_tokens: int
    logprobs: bool
    echo: Sequence[str]
    echo_tokens: Sequence[Sequence[GeneratedToken]] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def response(self, choices: list[dict[str, Any]], stream: bool = False) -> dict[str, Any]:
        """A response with these choices, or one event of a stream."""
        kind = ("chat.completion.chunk" if stream else "chat.completion") if self.chat else "text_completion"
        id = ("chatcmpl-" if self.chat else "cmpl-") + self.id
        return {"id": id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def choice(self, index: int, chunk: Chunk, offset: int, stream: bool = False) -> dict[str, Any]:
        """One text, or its next chunk in a stream. `offset` is the character at which the tokens begin."""
        common: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": chunk.finish}
        if self.chat:
            calls = [_tool_call(call) for call in chunk.calls]
            message: dict[str, Any] = {} if stream else {"role": "assistant", "refusal": None}
            message["content"] = chunk.text or (None if calls else "")
            if calls:
                message["tool_calls"] = [{"index": i} | call for i, call in enumerate(calls)] if stream else calls
            if self.logprobs:
                # Without the token that ends a document, as at OpenAI: clients join these tokens to the message.
                written = [self._chat_token(token) for token in chunk.tokens if token.finish != "end"]
                common["logprobs"] = {"content": written, "refusal": None}
            return {"delta" if stream else "message": message, **common}
        if self.logprobs:
            common["logprobs"] = self._completion_tokens(chunk.tokens, offset)
        return {"text": chunk.text, **common}

    def usage(self, generated: int) -> dict[str, int]:
        total = self.prompt_tokens + generated
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": generated, "total_tokens": total}

    def characters(self, tokens: Sequence[GeneratedToken]) -> int:
        """How many characters begin in these tokens."""
        return int(sum(self.tokenizer.sizes[1][token.token] for token in tokens))

    def offset(self, index: int) -> int:
        """The character of a text at which its tokens begin: -1 if the tokenizer puts a space before the prompt."""
        tokens = self.echo_tokens[index] if self.echo_tokens else ()
        return len(self.echo[index]) - self.characters(tokens)

    def _completion_tokens(self, tokens: Sequence[GeneratedToken], offset: int) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(max(0, offset))
            offset += self.characters([token])
        return {
            "tokens": [self._name(token.token) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [
                None
                if token.logprob is None
                else {self._name(id): _finite(value) for id, value in (*token.top, (token.token, token.logprob))}
                for token in tokens
            ],  # the token itself too, if it is not among the most likely ones, as at OpenAI
            "text_offset": offsets,
        }

    def _chat_token(self, token: GeneratedToken) -> dict[str, Any]:
        def entry(id: int, logprob: float | None) -> dict[str, Any]:
            return {"token": self._name(id), "logprob": _finite(logprob), "bytes": list(self.tokenizer.pieces[id])}

        return entry(token.token, token.logprob) | {"top_logprobs": [entry(*each) for each in token.top]}

    def _name(self, id: int) -> str:
        """The token's text. Bytes that are not whole characters get OpenAI's notation, so that they stay distinct.

        Special tokens have no text, so the one that ends a document gets its usual name, and others their number.
        """
        if id == self.tokenizer.end_of_text_id:
            return END_OF_TEXT
        piece = self.tokenizer.pieces[id]
        try:
            return piece.decode() or f"token_id:{id}"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


async def complete_response(form: ResponseFormat, steps: AsyncIterator[Chunks]) -> dict[str, Any]:
    """The response once all texts are complete."""
    texts = [[start] for start in form.echo]
    tokens = [list(tokens) for tokens in form.echo_tokens or [[] for _ in form.echo]]
    last: dict[int, Chunk] = {}
    async for step in steps:
        for index, chunk in step:
            texts[index].append(chunk.text)
            tokens[index] += chunk.tokens
            last[index] = chunk
    choices = [
        form.choice(i, Chunk("".join(texts[i]), tokens[i], last[i].finish, last[i].calls), form.offset(i))
        for i in range(len(form.echo))
    ]
    return form.response(choices) | {"usage": form.usage(sum(map(len, tokens)) - sum(map(len, form.echo_tokens)))}


async def stream_response(
    form: ResponseFormat, steps: AsyncIterator[Chunks], include_usage: bool
) -> AsyncIterator[bytes]:
    """The response as server-sent events. An error is an event too, since the status has already been sent."""
    no_usage = {"usage": None} if include_usage else {}
    generated, offsets = 0, list(map(len, form.echo))

    def event(choices: list[dict[str, Any]]) -> bytes:
        return _event(form.response(choices, stream=True) | no_usage)

    for index, start in enumerate(form.echo):
        tokens = form.echo_tokens[index] if form.echo_tokens else []
        first = form.choice(index, Chunk(start, tokens), form.offset(index), stream=True)
        if form.chat:
            first["delta"]["role"] = "assistant"
        if form.chat or start:
            yield event([first])
    try:
        async for step in steps:
            events = []
            for index, chunk in step:
                events.append(event([form.choice(index, chunk, offsets[index], stream=True)]))
                offsets[index] += form.characters(chunk.tokens)
                generated += len(chunk.tokens)
            yield b"".join(events)
        if include_usage:
            yield _event(form.response([], stream=True) | {"usage": form.usage(generated)})
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error_body(error.status, error.message, error.param, error.code))


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _finite(logprob: float | None) -> float | None:
    """None for the first token of a prompt, as OpenAI does: nothing comes before it."""
    return None if logprob is None else max(logprob, UNLIKELY)
