"""The command about tasks with verifiable rewards: tasks."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from groundling.cli.app import Json, app, print_json, print_rows, print_table
from groundling.config import Limits
from groundling.escape import command, printable

if TYPE_CHECKING:
    from groundling.data.conversations import Message
    from groundling.environments import Environment


@app.command(sort_key=7)
def tasks(
    name: Annotated[str | None, Parameter(help="An environment, or reasoning-gym:NAME. Default: list them.")] = None,
    /,
    *,
    level: int = 0,
    part: Literal["train", "validation", "test"] = "train",
    style: Literal["working", "answer", "tool", "shuffled", "answer-first"] | None = None,
    n: int | None = None,
    write: Path | None = None,
    json: Json = False,
) -> None:
    """List tasks with verifiable rewards, show examples of one, or write examples to train on.

    Args:
        level: How hard. 0 is the task's default level.
        part: Which items. No question is in two parts.
        style: The reply: working then answer, only the answer, calculator calls, the working of another item (a
            control), or the answer first. Default: working, or answer where a task has no working.
        n: How many items. Default: 5 to show, 10,000 to write.
        write: Write them to this file as JSON Lines, in OpenAI's `messages` form.
    """
    if name is None:
        if write is not None:
            raise ValueError(f"--write needs a task, as in `{command('tasks', 'sums', '--write', write)}`.")
        return _list(json)
    from groundling import storage
    from groundling.environments import find_environment

    if n is not None:
        Limits(1, 1_000_000).check("--n", n)
    file = None if write is None else storage.output_file("--write", write)
    environment = find_environment(name)
    level = environment.checked_level(level)
    items = [environment.item(i, part, level) for i in range(n or (5 if file is None else 10_000))]
    style = style or ("working" if items[0].working else "answer")
    conversations = [environment.messages(item, style) for item in items]
    if file is None:
        return _show(environment, level, conversations, json)
    storage.write_file(file, "".join(_line(messages) for messages in conversations))
    different = len({item.prompt for item in items})
    facts = {
        "file": str(file),
        "items": len(items),
        "different": different,
        "level": level,
        "part": part,
        "style": style,
    }
    if json:
        return print_json(facts)
    print(f"{file}: {len(items):,} items, {different:,} of them different ({part}, level {level}, style {style})")
    return None


def _list(json: bool) -> None:
    from groundling.environments import ENVIRONMENTS

    if json:
        return print_json([_about(environment) for environment in ENVIRONMENTS.values()])
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("task", "levels", "chance", "example"):
        table.add_column(title, justify="right" if title == "chance" else "left", no_wrap=title == "task")
    for name, environment in ENVIRONMENTS.items():
        prompt, reply = environment.messages(environment.item(0))
        levels = f"1 to {max(environment.levels)}, default {environment.default_level}"
        table.add_row(name, levels, f"{environment.chance():.1%}", Text(f"{prompt.content} → {reply.content}"))
    print_table(table, width=110)
    print(f"\nChance: a guess's accuracy, at the default level. Examples of one: `{command('tasks', 'sums')}`")
    return None


def _about(environment: Environment) -> dict[str, Any]:
    levels = [
        {"level": level, "about": about, "chance": environment.chance(level),
         **dict(zip(("longest_prompt", "longest_reply"), environment.longest(level), strict=True))}
        for level, about in environment.levels.items()
    ]  # fmt: skip
    item = environment.item(0)
    example = environment.messages(item, "working" if item.working else "answer")
    return {
        "name": environment.name, "version": environment.version, "about": environment.about, "levels": levels,
        "default_level": environment.default_level, "example": _openai(example),
    }  # fmt: skip


def _show(environment: Environment, level: int, conversations: Sequence[tuple[Message, ...]], json: bool) -> None:
    if json:
        return print_json(_about(environment) | {"level": level, "items": [_openai(each) for each in conversations]})
    print(f"{environment.name}: {environment.about}\n")
    rows = []
    for each, about in environment.levels.items():
        prompt, reply = environment.longest(each)
        lengths = f"prompts up to {prompt} characters, replies {reply}"
        rows.append((f"level {each}", f"{about}; chance {environment.chance(each):.1%}; {lengths}"))
    print_rows(rows)
    print(f"\nItems of level {level}:")
    for question, *replies in conversations:
        print(f"\n{printable(question.content)}")
        for message in replies:
            calls = [f"{call.name} {call.arguments}" for call in message.calls]
            text = message.content if message.role == "assistant" else f"= {message.content}"
            print("\n".join(f"  {printable(line)}" for line in calls or [text]))
    return None


def _openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages in the form of OpenAI's API, where a tool's result names the call that it answers."""
    made: list[dict[str, Any]] = []
    n_calls = 0
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.calls:
            entry["tool_calls"] = [
                {"id": f"call_{n_calls + i}", "type": "function",
                 "function": {"name": call.name, "arguments": call.arguments}}
                for i, call in enumerate(message.calls, start=1)
            ]  # fmt: skip
            n_calls += len(message.calls)
        elif message.role == "tool":
            entry["tool_call_id"] = f"call_{n_calls}"
        made.append(entry)
    return made


def _line(messages: Sequence[Message]) -> str:
    return jsonlib.dumps({"messages": _openai(messages)}, ensure_ascii=False) + "\n"
