"""Chat with a model: its turns as text, piece by piece, and its calls of tools. It calls the calculator itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any

from groundling.config import Sampling
from groundling.data.conversations import Message, messages_of
from groundling.data.progress import Notice
from groundling.data.tokenizers.base import Unknown
from groundling.data.tokenizers.chat import CALL, ChatTokenizer, text_of_call
from groundling.inference.calling import calculator_result
from groundling.inference.engine import Engine, Request
from groundling.inference.stream import StreamDecoder, decoded

_MOST_CALLS = 16
"""Turns with calls before an answer."""


class TurnDecoder(StreamDecoder):
    """A `StreamDecoder` for a turn of the assistant. From its first call on, the turn is held back: `finish` returns
    what is left of its content, and sets `calls`."""

    def __init__(self, tokenizer: ChatTokenizer, stop: Sequence[str] = ()) -> None:
        super().__init__(tokenizer, (*stop, CALL))
        self.content = ""
        self._chat, self._ends = tokenizer, tuple(filter(None, stop))
        self._ids = list[int]()
        self._calling = False

    def push(self, token: int) -> str:
        """Add a token. Returns the text that became final: none from a call on."""
        if self.stopped:
            return ""
        self._ids.append(token)
        if self._calling:
            return ""
        if token == self._chat.call_id:
            self._calling, piece = True, super().finish()
        else:
            piece = super().push(token)
            if self.stopped and not self._held.startswith(self._ends):
                self.stopped, self._calling = False, True
        self.content += piece
        return piece

    def finish(self) -> str:
        """After the last token: what is left of the content. Sets `calls`."""
        if self._calling:
            message = self._chat.parse(self._ids)
            self.calls = message.calls
            piece = message.content[len(self.content) :] if message.content.startswith(self.content) else ""
            for stop in self._ends:
                piece = piece.partition(stop)[0]
        else:
            piece = super().finish()
        self.content += piece
        return piece


class Chat:
    """A conversation. `messages` are its turns so far, and nobody else changes them.

    `engine` makes an engine with one slot. `notice` gets a sentence once older turns no longer fit into the `context`.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, context: int, engine: Callable[[], Engine], notice: Notice,
        messages: Sequence[Message] = (), tools: Sequence[Any] = (), unknown: Unknown = "error",
    ) -> None:  # fmt: skip
        self.messages = readable(tokenizer, messages, unknown)
        self._tokenizer, self._context, self._engine, self._notice = tokenizer, context, engine, notice
        self._tools, self._unknown, self._told = tools, unknown, False

    def say(self, text: str) -> None:
        """Add a message of the user."""
        self.messages += readable(self._tokenizer, [Message("user", text)], self._unknown)

    def forget(self, n: int) -> None:
        """Keep only the first `n` messages."""
        self.messages = self.messages[:n]

    def reply(self, sampling: Sampling, max_new_tokens: int, stop: Sequence[str] = ()) -> Generator[str, None, None]:
        """Generate the assistant's next turn. Yields its text as it comes, and adds it to `messages`.

        If the turn calls the calculator, its result is added too, and the assistant writes another one. Raises
        ValueError if the newest turn does not fit into the context.
        """
        for _ in range(_MOST_CALLS):
            ids = self._fitted(max_new_tokens)
            engine, turn = self._engine(), TurnDecoder(self._tokenizer, stop)
            room = min(max_new_tokens, self._context - len(ids))
            engine.add(Request(ids, room, sampling, self._tokenizer.end_ids))
            try:
                yield from decoded(engine, turn)
            finally:
                self.messages.append(Message("assistant", turn.content, turn.calls))
            for call in turn.calls:
                result = calculator_result(call)
                yield f"[{text_of_call(call)}]" if result is None else f"[{text_of_call(call)} = {result}] "
                if result is not None:
                    self.messages.append(Message("tool", result))
            if self.messages[-1].role != "tool":
                return

    def _fitted(self, max_new_tokens: int) -> list[int]:
        """The chat as token ids, without the oldest turns, if it does not leave a quarter of the context for a reply.

        A turn begins with the user's message. The system message stays.
        """
        room = self._context - max(1, min(max_new_tokens, self._context // 4))
        n_system = next((i for i, message in enumerate(self.messages) if message.role != "system"), 0)
        system, rest = self.messages[:n_system], self.messages[n_system:]
        starts = [i for i, message in enumerate(rest) if message.role == "user" and i > 0]
        for start in (0, *starts):
            kept = [*system, *rest[start:]]
            ids = self._tokenizer.render(kept, True, self._tools).ids
            if len(ids) <= room:
                break
        if len(ids) >= self._context:
            raise ValueError(
                f"The chat has {len(ids):,} tokens without its older turns, and the context of this model is "
                f"{self._context:,}. Shorten the message{', or the system message' if system else ''}."
            )
        if len(kept) < len(self.messages) and not self._told:
            self._told = True
            self._notice(
                f"The chat is longer than the context of {self._context:,} tokens: its oldest turns are dropped."
            )
        self.messages = kept
        return ids


def chat_messages(
    tokenizer: ChatTokenizer, messages: Sequence[Any], tools: Sequence[Any], unknown: Unknown = "error"
) -> list[Message]:
    """What `render` takes with `tools`. Messages and tools are in the form of OpenAI's API. The tools are listed in the
    system message, unless the tokenizer `takes_tools`. Raises ValueError that names the field."""
    return readable(tokenizer, messages_of(messages, [] if tokenizer.takes_tools else list(tools)), unknown)


def readable(tokenizer: ChatTokenizer, messages: Sequence[Message], unknown: Unknown) -> list[Message]:
    """The messages in the Unicode form that the tokenizer knows, and without unknown characters if `unknown` is
    `skip`."""
    made = list[Message]()
    for message in messages:
        content, _ = tokenizer.fit_prompt(message.content)
        if unknown == "skip":
            content = tokenizer.decode(tokenizer.encode(content, "skip")) if content else ""
        made.append(dataclasses.replace(message, content=content))
    return made
