"""A tokenizer for chats: messages become token ids, with a mask of what the assistant wrote.

Markup is ChatML (`<|im_start|>user`, the text, `<|im_end|>`), or what the chat template of an imported model writes.
The text of a message is encoded on its own, by the base tokenizer, which reads no special tokens from text. So a user
cannot end their turn by writing `<|im_end|>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling.data.conversations import Message, ToolCall
from groundling.data.progress import Notice, silent
from groundling.data.tokenizers.base import Tokenizer, Unknown, UnknownText, UnsignedIds, not_a_tokenizer
from groundling.data.tokenizers.chat_template import ImportedTemplate, chatml_template
from groundling.data.tokenizers.huggingface import HuggingFaceTokenizer

_START, _END, CALL, _END_OF_CALL = "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"
_CALL_MARKS = (CALL, _END_OF_CALL)
_ROLES = ("system", "user", "assistant", "tool")
MARKUP = (*(f"{_START}{role}\n" for role in _ROLES), _END, CALL, _END_OF_CALL)
"""Each is one token, so a model of characters needs no letters for `user`."""

REWARD = "<|reward|>"
"""The last token of a reward model, which no text has. Its logit is the reward."""

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Rendered:
    """A chat as token ids. `learned` marks the assistant's content and calls, and the end of its turn."""

    ids: list[int]
    learned: list[bool]


class ChatTokenizer(Tokenizer):
    """Wraps `base`. The markup's ids follow its ids, unless it has markup of its own."""

    kind = "chat"

    def __init__(
        self, base: Tokenizer, template: str | None = None, names: Mapping[str, str] | None = None,
        reward: bool = False,
    ) -> None:  # fmt: skip
        """`template` is the chat template of an imported model, in jinja, and `names` are its variables. Without it,
        chats are ChatML. With `reward`, the last token is REWARD. Raises ValueError, with the reason, if the template
        cannot be used."""
        if isinstance(base, ChatTokenizer):
            raise ValueError("the base of a chat tokenizer is one already.")
        self.base, self._source, self._names = base, template, dict(names or {})
        self.end_of_text_id, self.start_of_text_id = base.end_of_text_id, base.start_of_text_id
        added = base.to_huggingface()["added_tokens"]
        self._added = {token["content"]: token["id"] for token in added if token["content"]}
        marks = {token["content"]: token for token in added if token["special"] or token["content"] in _CALL_MARKS}
        self._specials = {content: token for content, token in marks.items() if content}
        self._imported = ImportedTemplate(template, self._names, list(self._specials)) if template is not None else None
        self.markup: tuple[str, ...] = () if self._imported or {_START, _END} <= self._added.keys() else MARKUP
        self.markup += (REWARD,) if reward else ()
        """The tokens that were added to the base, by id."""
        self.vocab_size = base.vocab_size + len(self.markup)
        self._tokens = self._added | {token: base.vocab_size + i for i, token in enumerate(self.markup)}
        self.end_of_turn_id: int = self._tokens[self._imported.end_of_turn if self._imported else _END]
        # Some put a space before a text only, others also after each special token.
        self._inside = int(isinstance(base, HuggingFaceTokenizer) and base.spaces_first_only)

    @property
    def end_ids(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((self.end_of_turn_id, *self.base.end_ids)))

    @property
    def names(self) -> dict[str, str]:
        """The special tokens that an imported template uses by name, such as `bos_token`."""
        return dict(self._names)

    @property
    def call_id(self) -> int | None:
        """The token that begins a call. None if that is text."""
        return self._tokens.get(CALL)

    @cached_property
    def markup_texts(self) -> dict[int, str]:
        """How each token that has no text of its own is written in a chat."""
        return {id: token for token, id in self._tokens.items() if not self.pieces[id]}

    def decode_with_markup(self, ids: Iterable[int]) -> str:
        """Like `decode`, with the markup."""
        texts, pieces = self.markup_texts, self.pieces
        return b"".join(texts[id].encode() if id in texts else pieces[id] for id in ids).decode("utf-8", "replace")

    @cached_property
    def template(self) -> str:
        """The chat template in jinja, in Hugging Face's format."""
        if self._source is not None:
            return self._source
        start = next((name for name, i in self._added.items() if i == self.start_of_text_id), "")
        return chatml_template(start, bool(self._newline))

    @property
    def takes_tools(self) -> bool:
        """Whether an imported template has a form of its own for definitions of tools."""
        return self._imported is not None and self._imported.takes_tools

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Sequence[Any] = ()
    ) -> Rendered:
        """The ids of a chat; `add_generation_prompt` begins the assistant's next turn. `tools` are definitions in the
        form of OpenAI's API, if it `takes_tools`.

        Raises ValueError (UnknownText) for text that the base cannot encode, or if an imported template refuses the
        messages.
        """
        ids, learned = list[int](), list[bool]()
        if self._imported:
            definitions = json.dumps(list(tools), ensure_ascii=False) if tools else ""
            pieces = self._by_template(messages, add_generation_prompt, definitions)
        else:
            pieces = self._as_chatml(messages, add_generation_prompt)
        for piece, is_learned in pieces:
            ids += piece
            learned += [is_learned] * len(piece)
        return Rendered(ids, learned)

    def after_turn(self, messages: Sequence[Message]) -> list[int]:
        """The ids that follow the end of an assistant's turn: `messages`, and where its next turn begins."""
        before = [Message("user", ""), Message("assistant", "")]
        whole = self.render([*before, *messages], add_generation_prompt=True).ids
        turn = self.render(before).learned
        return whole[len(turn) - turn[::-1].index(True) :]

    def parse(self, ids: Iterable[int]) -> Message:
        """The message that an assistant wrote as `ids`, up to the end of its turn."""
        ids = list(ids)
        ids = ids[: next((i for i, id in enumerate(ids) if id in self.end_ids), len(ids))]
        opening, closing = (self._tokens.get(token) for token in (CALL, _END_OF_CALL))
        if opening is None or closing is None:
            content, texts = _split_calls(self._decoded(ids))
        else:
            texts = list[str]()
            rest = list[int]()
            while opening in ids and closing in ids[ids.index(opening) :]:
                start = ids.index(opening)
                end = ids.index(closing, start)
                rest += ids[:start]
                texts.append(self._decoded(ids[start + 1 : end]))
                ids = ids[end + 1 :]
            content = self._decoded(rest + ids)
        if self._imported and texts:  # those templates write calls on lines of their own
            content, texts = content.strip("\n"), [text.strip() for text in texts]
        return Message("assistant", content, tuple(map(_call_of, texts)))

    def _as_chatml(self, messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[tuple[list[int], bool]]:
        yield self.start_ids, False
        for message in messages:
            learned = message.role == "assistant"
            yield self._markup[f"{_START}{message.role}\n"], False
            if message.content:
                yield self._encoded(message.content), learned
            for call in message.calls:
                yield [*self._markup[CALL], *self._encoded(text_of_call(call)), *self._markup[_END_OF_CALL]], learned
            yield self._markup[_END], learned
            yield self._newline, False
        if add_generation_prompt:
            yield self._markup[f"{_START}assistant\n"], False

    def _by_template(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: str
    ) -> Iterator[tuple[list[int], bool]]:
        assert self._imported
        at = 0  # where a space is put before a text
        for segment in self._imported.segments(messages, add_generation_prompt, tools):
            text = strip = ""
            for part in segment.parts:
                if isinstance(part, str):
                    pieces = [(piece, self._specials.get(piece)) for piece in self._special.split(part)]
                else:
                    pieces = [(self._imported.content(messages[part]), None)]
                for piece, token in pieces:
                    text += piece.lstrip() if strip and not text and not token else "" if token else piece
                    if not token:
                        continue
                    text = text.rstrip() if token.get("lstrip") else text
                    yield self._encoded(text, at), segment.learned
                    yield [token["id"]], segment.learned
                    text, strip, at = "", "rstrip" if token.get("rstrip") else "", self._inside
            if text:
                yield self._encoded(text, at), segment.learned
                at = 1

    @cached_property
    def _special(self) -> re.Pattern[str]:
        longest_first = sorted(self._specials, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "(?!)")

    @cached_property
    def _markup(self) -> dict[str, list[int]]:
        """The ids of each markup: one, or more for markup that the base has as a token and text."""
        if MARKUP[0] in self._tokens:
            return {token: [self._tokens[token]] for token in MARKUP}
        headers = {f"{_START}{role}\n": [self._tokens[_START], *self._encoded(f"{role}\n")] for role in _ROLES}
        return headers | {
            token: [self._tokens[token]] if token in self._tokens else self._encoded(token) for token in MARKUP[4:]
        }

    @cached_property
    def _newline(self) -> list[int]:
        try:
            return self._encoded("\n")
        except UnknownText:
            return []

    def _encoded(self, text: str, at: int | None = None) -> list[int]:
        ids: list[int] = self.base.encode_array(text, offset=self._inside if at is None else at).tolist()
        return ids

    def _decoded(self, ids: list[int]) -> str:
        if self._inside:
            return self.base.decode_bytes(id for id in ids if id < self.base.vocab_size).decode("utf-8", "replace")
        return self.decode(ids)

    # What follows is the base's.

    def encode_array(self, text: str, unknown: Unknown = "error", offset: int = 0) -> Ids:
        return self.base.encode_array(text, unknown, offset)

    @property
    def can_be_cut(self) -> bool:  # type: ignore[override]
        return self.base.can_be_cut

    def encode_chunks(self, chunks: Iterable[str], unknown: Unknown = "error", position: int = 0) -> Iterator[Ids]:
        return self.base.encode_chunks(chunks, unknown, position)

    def encode_batch(self, texts: Sequence[str], unknown: Unknown = "error") -> tuple[UnsignedIds, list[int]]:
        return self.base.encode_batch(texts, unknown)

    @property
    def puts_space_first(self) -> bool:  # type: ignore[override]
        return self.base.puts_space_first

    def decode(self, ids: Iterable[int]) -> str:
        ids = list(ids)
        self.decode_bytes(ids)  # refuses ids out of range
        return self.base.decode(id for id in ids if id < self.base.vocab_size)

    def knows(self, character: str) -> bool:
        return self.base.knows(character)

    @property
    def normalizer(self) -> str:
        return self.base.normalizer

    @cached_property
    def pieces(self) -> Sequence[bytes]:
        return [*self.base.pieces, *[b""] * len(self.markup)]

    def to_dict(self) -> dict[str, Any]:
        own = {} if self._source is None else {"template": self._source, "names": self._names}
        return {"kind": self.kind, "version": 1, "base": self.base.to_dict(), "markup": list(self.markup)} | own

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> ChatTokenizer:
        """The inverse of `to_dict`. Raises ValueError that names `path` if it is damaged."""
        base, template, names = value.get("base"), value.get("template"), value.get("names", {})
        texts = names.values() if isinstance(names, dict) else [None]
        if value.get("version") != 1 or not isinstance(base, dict) or not isinstance(template, str | None):
            raise not_a_tokenizer(path)
        if base.get("kind") in (None, "chat") or not all(isinstance(text, str) for text in texts):
            raise not_a_tokenizer(path)
        reward = REWARD in (value.get("markup") or ())
        return cls._restored(value, path, Tokenizer.of(base, path), template, names, reward)

    def to_huggingface(self) -> dict[str, Any]:
        """See `Tokenizer.to_huggingface`. The library reads markup in a text as the special token, as `template` wants
        it; so text from users must be checked first."""
        definition = self.base.to_huggingface()
        exact = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        new = {token: self._tokens[token] for token in self.markup}
        # Other programs drop special tokens from a text, and would not see a call.
        added = [{"id": i, "content": token, "special": token not in _CALL_MARKS} | exact for token, i in new.items()]
        model = definition["model"]
        if isinstance(model.get("vocab"), dict):
            model = model | {"vocab": model["vocab"] | new}
        return definition | {"added_tokens": [*definition["added_tokens"], *added], "model": model}


def with_chat(
    tokenizer: Tokenizer,
    template: str | None = None,
    names: Mapping[str, str] | None = None,
    notice: Notice = silent,
) -> ChatTokenizer:
    """The tokenizer for chats; itself if it is one. `template` and `names` are an imported model's, as `read_template`
    gives them. If that template cannot be used, `notice` gets the reason, and chats are ChatML."""
    if isinstance(tokenizer, ChatTokenizer):
        return tokenizer
    if template is not None:
        try:
            return ChatTokenizer(tokenizer, template, names)
        except ValueError as error:
            notice(f"This model's own chat template is not used: {str(error).rstrip('.')}. Chats are ChatML instead.")
    return ChatTokenizer(tokenizer)


def with_reward(tokenizer: ChatTokenizer) -> ChatTokenizer:
    """The tokenizer of a reward model: the same, with one more token."""
    return ChatTokenizer(tokenizer.base, tokenizer._source, tokenizer._names, reward=True)


def text_of_call(call: ToolCall) -> str:
    """A call between its markup: an expression for the calculator, or JSON."""
    arguments = json.loads(call.arguments)
    if call.name == "calculator" and isinstance(arguments, dict) and arguments.keys() == {"expression"}:
        expression = arguments["expression"]
        if isinstance(expression, str) and not expression.startswith("{"):
            return expression
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'


def _call_of(text: str) -> ToolCall:
    """The call that stands between the markup. Anything that is not JSON is an expression for the calculator."""
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            return ToolCall(value["name"], json.dumps(value.get("arguments", {}), ensure_ascii=False))
    return ToolCall("calculator", json.dumps({"expression": text}, ensure_ascii=False))


def _split_calls(text: str) -> tuple[str, list[str]]:
    """Content and calls of a text whose markup is plain letters."""
    pattern = re.compile(f"{CALL}(.*?){_END_OF_CALL}", re.DOTALL)
    return pattern.sub("", text), pattern.findall(text)
