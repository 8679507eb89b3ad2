"""Conversations and preference pairs, as people's data sets have them: JSON Lines, JSON, CSV or Parquet.

The shape of an entry is recognized by its keys, and each entry of a file may have another one:

    messages                          OpenAI's: role, content, tool_calls
    conversations                     ShareGPT's: from, value
    chosen, rejected                  two replies, with a prompt of any shape here, or after the same turns
    instruction, input, output        Alpaca's, with history and system
    prompt, completion                texts or messages; other names: question and answer, query and response, ...
    prompt                            without a reply, for reinforcement learning
    text                              a dialogue such as `Human: ...`, or any text, which the assistant then writes

Other keys are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from groundling.config import CorpusSettings
from groundling.data.dialogues import CALL_ROLES, ROLES, Role, calls_in, decoded, dialogue_in
from groundling.data.formats import look_up
from groundling.data.progress import Notice, Progress, ProgressMeter, silent
from groundling.data.sources import Source


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is JSON text, as in OpenAI's API."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """A turn. `calls` are the tools that an assistant calls in it, after its `content`."""

    role: Role
    content: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """`place` is where it was read, such as `chats.jsonl, line 12`."""

    messages: tuple[Message, ...]
    place: str


@dataclass(frozen=True)
class Preference:
    """Two replies to the same prompt."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    place: str


Row = Conversation | Preference


def read_conversations(
    source: Source, settings: CorpusSettings, notice: Notice = silent, progress: Progress = silent
) -> Iterator[Row]:
    """The conversations and pairs of a source that was found with `entries=True`.

    `settings.field` names a field that holds the messages, if it has an unusual name. Raises ValueError with file, line
    and field for an entry of no known shape. `notice` gets what was left out or changed, with the first place of each.
    """
    meter, seen = ProgressMeter(progress, "reading", source.size), _Seen()
    for file in source.files:
        for place, entry in source.entries(file, notice, meter.add):
            place = f"{file.name}, {place}"
            try:
                if settings.field:
                    entry = {"messages": look_up(entry, settings.field)}
                row = conversation_of(entry, place, seen.add)
            except _Fault as fault:
                raise ValueError(f"{place}: {fault}") from None
            if row:
                yield row
    for sentence in seen.sentences():
        notice(sentence)


def messages_of(messages: Sequence[Any], tools: Any = None) -> list[Message]:
    """A chat in the shape of OpenAI's API, or of `Message`s, as data is read: turns of the same role are joined."""
    if not messages:
        raise _Fault("messages is empty. Give at least one, such as {'role': 'user', 'content': 'Hello'}.")
    lists = ([m] if isinstance(m, Message) else _message(m, f"messages[{i}]") for i, m in enumerate(messages))
    return _joined(_system({"tools": tools}) + [message for each in lists for message in each])


class _Fault(ValueError):
    """What is wrong with an entry."""


class _Seen:
    """What was left out or changed: how often, and where first."""

    def __init__(self) -> None:
        self._seen = dict[str, tuple[int, str]]()

    def add(self, what: str, place: str) -> None:
        n, first = self._seen.get(what, (0, place))
        self._seen[what] = n + 1, first

    def sentences(self) -> Iterator[str]:
        for what, (n, first) in self._seen.items():
            yield f"{what[0].upper()}{what[1:]}: {n:,} (first: {first})."


_CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog")
_PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input")
_REPLIES = ("completion", "output", "response", "answer", "answers", "solution")
_SYSTEM = ("system", "system_prompt")


def conversation_of(entry: Any, place: str, count: Any = silent) -> Row | None:
    """The conversation or pair in an entry, or None if nothing can be learned from it. `count` is called with what was
    left out or changed, and with `place`. Raises ValueError if its shape is unknown."""
    if not isinstance(entry, dict):
        raise _Fault(f"expected an object with messages, not {_kind(entry)}.")
    entry = {key: value for key, value in entry.items() if value is not None}
    if "chosen" in entry and "rejected" in entry:
        return _preference(entry, place, count)
    messages = _system(entry) + _prompt(entry) + _reply(entry)
    if all(message.role == "system" for message in messages):
        if text := _text(entry.get("text", ""), "text"):
            turns = dialogue_in(text)
            messages += [Message(role, part) for role, part in turns] or [Message("assistant", text)]
            if not turns:
                count("texts without a prompt, which the assistant writes", place)
        elif entry.keys() & {*_CHATS, *_PROMPTS, "text"}:
            count("left out entries without text", place)
            return None
        else:
            _refuse_shape(entry)
    tidied = _tidy(messages, place, count)
    return Conversation(tidied, place) if tidied else None


def _refuse_shape(entry: dict[str, Any]) -> NoReturn:
    raise _Fault(
        f"expected messages, conversations, prompt and completion, prompt, chosen and rejected, or text, but it has: "
        f"{', '.join(entry) or 'nothing'!s:.200}. Rename its fields, or name the one with the messages with --field."
    )


def _prompt(entry: dict[str, Any]) -> list[Message]:
    """The messages of a chat, or the prompt."""
    if chat := next((name for name in _CHATS if name in entry), None):
        return _messages(entry[chat], chat, "user")
    name = next((name for name in _PROMPTS if name in entry), None)
    if name is None:
        return []
    prompt = _messages(entry[name], name, "user")
    more = next((each for each in ("input", "context") if entry.get(each)), "") if name == "instruction" else ""
    if more:
        prompt.append(Message("user", _text(entry[more], more)))
        if len(prompt) == 2:
            prompt = [Message("user", "\n\n".join(message.content for message in prompt))]
    history = list[Message]()
    for i, turn in enumerate(_list(entry.get("history", []), "history")):
        texts = [_text(text, f"history[{i}]") for text in _list(turn, f"history[{i}]")]
        if len(texts) != 2:
            raise _Fault(f"expected history[{i}] to be two texts, the user's and the assistant's, not {len(texts)}.")
        history += [Message("user", texts[0]), Message("assistant", texts[1])]
    return history + prompt


def _reply(entry: dict[str, Any]) -> list[Message]:
    name = next((name for name in _REPLIES if name in entry), None)
    if name is None or any(chat in entry for chat in _CHATS) or not any(prompt in entry for prompt in _PROMPTS):
        return []
    if name == "completion" and isinstance(entry.get("label"), bool):
        raise _Fault("a completion with a label is not a pair. Give chosen and rejected replies to each prompt.")
    value = decoded(entry[name])
    if name == "answers" and isinstance(value, list) and all(isinstance(each, dict) for each in value):  # xLAM's
        return [Message("assistant", "", tuple(_call(call, f"{name}[{i}]") for i, call in enumerate(value)))]
    return _messages(entry[name], name, "assistant")


def _system(entry: dict[str, Any]) -> list[Message]:
    name = next((name for name in _SYSTEM if name in entry), None)
    text = _text(entry[name], name) if name else ""
    if tools := decoded(entry.get("tools")):  # the assistant has to know which there are
        listed = tools if isinstance(tools, list) else [tools]
        lines = [tool if isinstance(tool, str) else json.dumps(tool, ensure_ascii=False) for tool in listed]
        text = "\n".join([*([text, ""] if text else []), "Tools:", *lines])
    return [Message("system", text)] if text else []


def _preference(entry: dict[str, Any], place: str, count: Any) -> Preference | None:
    prompt = _prompt(entry)
    if prompt and prompt[-1].role == "assistant":  # its last reply is one of the two
        prompt = prompt[:-1]
    sides = [_messages(entry[name], name, "assistant") for name in ("chosen", "rejected")]
    wholes = [
        tidied
        for side in sides
        if (tidied := _tidy(_system(entry) + (prompt if _is_reply(side) else []) + side, place, count))
    ]
    if len(wholes) < 2:
        return None
    chosen, rejected = wholes
    if chosen == rejected:
        count("left out pairs whose replies are the same", place)
        return None
    n = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(map(len, wholes)))
    if n == 0 or not (_is_reply(chosen[n:]) and _is_reply(rejected[n:])):
        raise _Fault("expected chosen and rejected to be replies to the same prompt: give a prompt, or messages.")
    return Preference(chosen[:n], chosen[n:], rejected[n:], place)


def _is_reply(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[0].role == "assistant"


def _tidy(messages: list[Message], place: str, count: Any) -> tuple[Message, ...]:
    """The messages with turns of the same role joined. Empty if a message is."""
    messages = [message for message in messages if message.role != "system" or message.content]
    if not all(message.content.strip() or message.calls or message.role == "tool" for message in messages):
        count("left out conversations with an empty message", place)
        return ()
    tidied = _joined(messages)
    turns, joined = ([each.role for each in part if each.role != "system"] for part in (messages, tidied))
    if joined != turns:
        count("conversations with turns of the same role, joined by an empty line", place)
    if joined[:1] != ["user"] and len(tidied) > 1:
        count("conversations that the assistant begins", place)
    return tuple(tidied)


def _joined(messages: Sequence[Message]) -> list[Message]:
    joined = list[Message]()
    for message in messages:
        last = joined[-1] if joined else None
        if last and last.role == message.role != "tool" and not last.calls:
            joined[-1] = Message(message.role, f"{last.content}\n\n{message.content}".strip(), message.calls)
        else:
            joined.append(message)
    return joined


def _messages(value: Any, field: str, role: Role) -> list[Message]:
    """The messages of a field: a list of them, one, a dialogue, or a text that `role` says."""
    written = decoded(value)
    if written is not value and (field in _CHATS or _are_messages(written)):
        value = written
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return [message for i, item in enumerate(value) for message in _message(item, f"{field}[{i}]")]
    text = _text(value, field)
    if turns := dialogue_in(text):
        return [Message(each, part) for each, part in turns]
    if field in _CHATS:
        raise _Fault(f"expected {field} to be a list of messages, not text.")
    return [Message(role, text)]


def _are_messages(value: Any) -> bool:
    """Whether a reply that is JSON is messages, and not JSON that the assistant writes."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in items)


def _message(item: Any, field: str) -> list[Message]:
    if not isinstance(item, dict):
        raise _Fault(f"expected {field} to be a message with role and content, not {_kind(item)}.")
    item = {key: value for key, value in item.items() if value is not None}
    if {"input", "output"} <= item.keys():  # Capybara's
        return [Message("user", _text(item["input"], field)), Message("assistant", _text(item["output"], field))]
    names = "role" if "role" in item else "from", "content" if "content" in item or "value" not in item else "value"
    role, content = (item.get(name) for name in names)
    calls, known = item.get("tool_calls") or [], str(role).lower().strip()
    if function := item.get("function_call"):  # OpenAI's older form
        calls = [function]
    if known in CALL_ROLES:
        value = decoded(content)
        calls, content, known = value if isinstance(value, list) else [value], "", "assistant"
    elif ROLES.get(known) == "assistant" and not calls and isinstance(content, str):
        content, calls = calls_in(content)
    if known not in ROLES:
        raise _Fault(f"expected {field}.{names[0]} to be system, user, assistant or tool, not {role!r:.50}.")
    if item.get("weight") == 0:
        raise _Fault(f"{field}.weight is 0, but every reply is learned. Remove the conversation, or the weight.")
    if content is None and not calls:
        raise _Fault(f"expected {field}.{names[1]} to be text, but it is missing or null.")
    made = tuple(_call(call, f"{field}.tool_calls[{i}]") for i, call in enumerate(_list(calls, f"{field}.tool_calls")))
    if made and ROLES[known] != "assistant":
        raise _Fault(f"{field} has tool calls, but only the assistant calls tools, and its role is {role!r:.50}.")
    return [Message(ROLES[known], _text(content or "", f"{field}.{names[1]}"), made)]


def _call(value: Any, field: str) -> ToolCall:
    call = value.get("function", value) if isinstance(value, dict) else value
    name = call.get("name") if isinstance(call, dict) else None
    arguments = call.get("arguments", call.get("parameters")) if isinstance(call, dict) else None
    arguments = {} if arguments in (None, "") else decoded(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise _Fault(f"expected {field} to be a call with a name and arguments, an object or its JSON.")
    return ToolCall(_text(name, field), json.dumps(arguments, ensure_ascii=False))


def _text(value: Any, field: str) -> str:
    """A text, or the texts of OpenAI's content parts."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        for part in value:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                what = part.get("type") if isinstance(part, dict) else _kind(part)
                raise _Fault(f"expected {field} to be text, but a part of it is {what!s:.50}.")
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise _Fault(f"expected {field} to be text, not {_kind(value)}.")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise _Fault(f"{field} has half of a UTF-16 pair (\\ud800 to \\udfff), not a character.")
    return value


def _list(value: Any, field: str) -> list[Any]:
    value = decoded(value)
    if not isinstance(value, list):
        raise _Fault(f"expected {field} to be a list, not {_kind(value)}.")
    return value


def _kind(value: Any) -> str:
    kinds = {"list": "a list", "dict": "an object", "str": "text", "NoneType": "null", "bool": "true or false"}
    return kinds.get(type(value).__name__, "a number")
