"""Conversations and calls that are written as one text, and the names that data sets give to the roles."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]

ROLES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant", "ai": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "tool_response": "tool",
    "ipython": "tool",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call")
"""An assistant's turn in ShareGPT's shape: its value is the JSON of a call, or of several."""

_FORMS = (
    re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):"),  # HH-RLHF
    re.compile(r"(?:\A\s*|\n)### ?(System|Human|User|Assistant):"),  # Guanaco
    re.compile(r"<\|im_start\|>(system|user|assistant|tool)\n"),
)
_CALL = re.compile(r"\s*<tool_call>\s*(.*?)\s*</tool_call>\s*", re.DOTALL)
_ENDS = re.compile(r"\s*(?:<\|im_end\|>\s*)?\Z")


def dialogue_in(text: str) -> list[tuple[Role, str]]:
    """Role and content of each turn of a text such as `Human: Hi\\n\\nAssistant: Hello`. Empty if it is none.

    An empty last turn is left out: it is where the reply would begin.
    """
    for form in _FORMS:
        parts = form.split(text)
        if len(parts) > 1 and not parts[0].strip():
            turns = [
                (ROLES[role.lower()], _ENDS.sub("", content).strip())
                for role, content in zip(parts[1::2], parts[2::2], strict=True)
            ]
            return turns if turns[-1][1] else turns[:-1]
    return []


def calls_in(text: str) -> tuple[str, list[Any]]:
    """The text before calls that end it, as `<tool_call>` with JSON inside, and the calls. Others stay in the text."""
    start = text.find("<tool_call>")
    if start < 0 or _CALL.sub("", text[start:]):
        return text, []
    try:
        return text[:start].strip(), [json.loads(call) for call in _CALL.findall(text[start:])]
    except (ValueError, RecursionError):
        return text, []


def decoded(value: Any) -> Any:
    """A list or object that is written as JSON text, as in a column of CSV. Other values as they are."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, list | dict) else value
    return value
