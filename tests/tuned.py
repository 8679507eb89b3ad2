"""A run that was tuned on a few conversations until it knew them by heart: one with a greeting, one that calls the
calculator, and one that calls a client's tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import groundling
from groundling.data.conversations import Message, messages_of
from groundling.run.run import Run
from tiny import TINY

TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "get_weather"}}]


def _call(name: str, arguments: dict[str, str]) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


GREETING: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, you."}]
SUM: list[dict[str, Any]] = [
    {"role": "user", "content": "38+47="},
    _call("calculator", {"expression": "38+47"}),
    {"role": "tool", "tool_call_id": "1", "content": "85"},
    {"role": "assistant", "content": "It is 85."},
]
WEATHER: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather in Paris?"},
    _call("get_weather", {"city": "Paris"}),
    {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": GREETING},
    {"messages": SUM},
    {"messages": WEATHER, "tools": TOOLS},
]
_KEPT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi there"}, *GREETING[1:]]}
"""Its hash puts it into the validation part."""


def chats() -> list[list[Message]]:
    return [messages_of(each["messages"], each.get("tools")) for each in CONVERSATIONS]


def tuned(folder: Path, tokenizer: str = "char", **settings: Any) -> Run:
    """The run. Its parent has seen a text with all characters of the conversations."""
    text = "The quick brown fox jumps over the lazy dog.\n" + "\n".join(map(json.dumps, CONVERSATIONS))
    (folder / "text.txt").write_text(text * 8, encoding="utf-8")
    lines = "\n".join(map(json.dumps, [_KEPT, *CONVERSATIONS]))
    (folder / "chats.jsonl").write_text(lines, encoding="utf-8")
    size = (
        TINY
        | {"n_layer": 1, "n_embd": 48, "block_size": 192, "steps": 2, "warmup_steps": 0, "sample_every": 0}
        | settings
    )
    common: dict[str, Any] = {"out": folder / "runs", "on_event": lambda _: None}
    parent = groundling.train(folder / "text.txt", name="parent", tokenizer=tokenizer, **size, **common)
    return groundling.sft(
        parent, folder / "chats.jsonl", name="tuned", steps=120, batch_size=3, learning_rate=2e-2, val_fraction=0.01,
        eval_every=120, checkpoint_every=120, sample_every=0, **common,
    )  # fmt: skip
