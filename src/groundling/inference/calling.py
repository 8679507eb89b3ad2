"""Tools that a model calls while it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from groundling.data.conversations import Message, ToolCall
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.environments.calculator import calculate


class Calculator:
    """Answers calls of the calculator: `respond` of `sample_rollouts`. It computes in this process, within bounds."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, written: Sequence[int]) -> list[int] | None:
        """The tokens that follow a turn: the result of its last call, and where the next turn begins. None if the turn
        calls nothing."""
        ends = [i for i, token in enumerate(written[:-1]) if token == self.tokenizer.end_of_turn_id]
        results = answered(self.tokenizer.parse(written[ends[-1] + 1 if ends else 0 :]))
        return self.tokenizer.after_turn(results) if results else None


def answered(message: Message) -> list[Message]:
    """The results of the calls in an assistant's message."""
    return [Message("tool", calculator_result(call) or "error") for call in message.calls]


def calculator_result(call: ToolCall) -> str | None:
    """What the calculator answers. None if the call is of another tool."""
    if call.name != "calculator":
        return None
    values = json.loads(call.arguments)
    expression = values.get("expression") if isinstance(values, dict) else None
    return calculate(expression) if isinstance(expression, str) else "error"
