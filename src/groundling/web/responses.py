"""Pieces of generated text -> the JSON that OpenAI's clients read, whole or as it comes."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from groundling.data.tokenizers.base import Tokenizer
from groundling.inference.engine import GeneratedToken
from groundling.web.batching import Pieces
from groundling.web.errors import ApiError, error_body

UNLIKELY = -9999.0
"""What OpenAI says for a probability of zero, which JSON could not express as a logarithm."""


@dataclass
class Form:
    """How the answer to one request looks. `echo` holds what each text begins with, and `echoed` the tokens of that,
    where their log probabilities are asked for."""

    chat: bool
    model: str
    tokenizer: Tokenizer
    prompt_tokens: int
    logprobs: bool
    echo: Sequence[str]
    echoed: Sequence[Sequence[GeneratedToken]] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, choices: list[dict[str, Any]], chunk: bool = False) -> dict[str, Any]:
        """An answer, or with `chunk` a piece of one, around its choices."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        id = ("chatcmpl-" if self.chat else "cmpl-") + self.id
        return {"id": id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[GeneratedToken],
        finish: str | None,
        offset: int,
        chunk: bool = False,
    ) -> dict[str, Any]:
        """A text, or with `chunk` the next piece of it; `offset` is the character at which the tokens begin."""
        common: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish}
        if self.chat:
            said = {"content": text} if chunk else {"role": "assistant", "content": text, "refusal": None}
            if self.logprobs:
                common["logprobs"] = {"content": [self._chat_token(token) for token in tokens], "refusal": None}
            return {"delta" if chunk else "message": said, **common}
        if self.logprobs:
            common["logprobs"] = self._completion_tokens(tokens, offset)
        return {"text": text, **common}

    def usage(self, generated: int) -> dict[str, int]:
        total = self.prompt_tokens + generated
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": generated, "total_tokens": total}

    def characters(self, tokens: Sequence[GeneratedToken]) -> int:
        """How many characters the tokens are; one counts where its first byte stands."""
        return int(sum(self.tokenizer.sizes[1][token.token] for token in tokens))

    def _completion_tokens(self, tokens: Sequence[GeneratedToken], offset: int) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += self.characters([token])
        return {
            "tokens": [self._shown(token.token) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [
                None if token.logprob is None else {self._shown(id): _finite(value) for id, value in token.top}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _chat_token(self, token: GeneratedToken) -> dict[str, Any]:
        def entry(id: int, logprob: float | None) -> dict[str, Any]:
            return {
                "token": self._shown(id), "logprob": _finite(logprob), "bytes": list(self.tokenizer.pieces[id]),
            }  # fmt: skip

        return entry(token.token, token.logprob) | {"top_logprobs": [entry(*each) for each in token.top]}

    def _shown(self, id: int) -> str:
        """The token's text; bytes that are no whole characters as OpenAI writes them, so that they stay distinct."""
        piece = self.tokenizer.pieces[id]
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


async def whole(form: Form, pieces: AsyncIterator[Pieces]) -> dict[str, Any]:
    """The answer when all of it is there."""
    texts = [[begin] for begin in form.echo]
    tokens = [list(echoed) for echoed in form.echoed or [[] for _ in form.echo]]
    finish: list[str | None] = [None] * len(form.echo)
    async for step in pieces:
        for index, piece in step:
            texts[index].append(piece.text)
            tokens[index] += piece.tokens
            finish[index] = piece.finish or finish[index]
    begins = [0] * len(form.echo) if form.echoed else list(map(len, form.echo))
    choices = [form.choice(i, "".join(texts[i]), tokens[i], finish[i], begins[i]) for i in range(len(form.echo))]
    return form.envelope(choices) | {"usage": form.usage(sum(map(len, tokens)) - sum(map(len, form.echoed)))}


async def streamed(form: Form, pieces: AsyncIterator[Pieces], include_usage: bool) -> AsyncIterator[bytes]:
    """The answer as server-sent events. What fails on the way is an event too: the status has been sent already."""
    nothing_yet = {"usage": None} if include_usage else {}
    generated, offsets = 0, [len(begin) for begin in form.echo]

    def event(choices: list[dict[str, Any]]) -> bytes:
        return _event(form.envelope(choices, chunk=True) | nothing_yet)

    for index, begin in enumerate(form.echo):
        first = form.choice(index, begin, form.echoed[index] if form.echoed else [], None, 0, chunk=True)
        if form.chat:
            first["delta"]["role"] = "assistant"
        if form.chat or begin:
            yield event([first])
    try:
        async for step in pieces:
            choices = []
            for index, piece in step:
                choices.append(form.choice(index, piece.text, piece.tokens, piece.finish, offsets[index], chunk=True))
                offsets[index] += form.characters(piece.tokens)
                generated += len(piece.tokens)
            yield b"".join(event([choice]) for choice in choices)
        if include_usage:
            yield _event(form.envelope([], chunk=True) | {"usage": form.usage(generated)})
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error_body(error.status, error.message, error.param, error.code))


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _finite(logprob: float | None) -> float | None:
    """None for the first token of a prompt, as at OpenAI: nothing came before it."""
    return None if logprob is None else max(logprob, UNLIKELY)
