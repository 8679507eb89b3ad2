"""The command `tasks`: lists, shows and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from groundling.environments import ENVIRONMENTS


def test_the_list(cli: Any) -> None:
    done = cli("tasks")
    assert done.status == 0
    for name, environment in ENVIRONMENTS.items():
        assert name in done.out and environment.item(0).prompt in done.out
    found = json.loads(cli("tasks", "--json").out)
    assert [each["name"] for each in found] == list(ENVIRONMENTS)
    assert found[0]["levels"][0] | {"chance": 0} == {
        "level": 1, "about": "3 to 4 letters", "chance": 0, "longest_prompt": 13, "longest_reply": 23,
    }  # fmt: skip


def test_examples_are_shown(cli: Any) -> None:
    item = ENVIRONMENTS["sums"].item(1, "test", 3)
    done = cli("tasks", "sums", "--level", 3, "--part", "test", "--n", 2)
    assert done.out.endswith(f"\n\n{item.prompt}\n  {item.working};#{item.answer}\n")
    done = cli("tasks", "sums", "--level", 1, "--style", "tool", "--n", 1)
    item = ENVIRONMENTS["sums"].item(0, "train", 1)
    expression = item.prompt[:-1]
    call = f'calculator {{"expression": "{expression}"}}'
    assert done.out.endswith(f"{item.prompt}\n  {call}\n  = {item.answer}\n  #{item.answer}\n")


def test_conversations_are_written(cli: Any) -> None:
    done = cli("tasks", "sums", "--write", "s.jsonl", "--n", 300, "--style", "tool", "--level", 2, "--json")
    assert json.loads(done.out) == {
        "file": "s.jsonl", "items": 300, "different": len({ENVIRONMENTS["sums"].item(i).prompt for i in range(300)}),
        "level": 2, "part": "train", "style": "tool",
    }  # fmt: skip
    lines = [json.loads(line) for line in Path("s.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 300
    assert lines[0] == {
        "messages": [
            {"role": "user", "content": "91-11+62="},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "call_1", "type": "function",
                 "function": {"name": "calculator", "arguments": '{"expression": "91-11"}'}},
            ]},
            {"role": "tool", "content": "80", "tool_call_id": "call_1"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "call_2", "type": "function",
                 "function": {"name": "calculator", "arguments": '{"expression": "80+62"}'}},
            ]},
            {"role": "tool", "content": "142", "tool_call_id": "call_2"},
            {"role": "assistant", "content": "#142"},
        ]
    }  # fmt: skip


def test_refusals(cli: Any) -> None:
    assert "There is no environment 'sum' (did you mean 'sums'?)" in cli("tasks", "sum").err
    assert "--write needs a task, as in `groundling tasks sums --write x.jsonl`" in cli("tasks", "--write=x.jsonl").err
    assert "--level must be at most 4, not 5." in cli("tasks", "sums", "--level", 5).err
    assert "reverse needs no calculator" in cli("tasks", "reverse", "--style=tool", "--write=x.jsonl").err
    assert not Path("x.jsonl").exists()
