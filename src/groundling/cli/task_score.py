"""Show how a run does on a task with verifiable rewards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from groundling.cli.app import note, print_json, print_rows
from groundling.escape import printable

if TYPE_CHECKING:
    from groundling.run.run import Run


def show_task_score(run: Run, task: str, against: Run | None, json: bool, **options: Any) -> None:
    """Score the run, with progress on standard error, and print the result."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("replies", total=None)
        result = run.evaluate_task(
            task, against=against, progress=lambda done, total: bar.update(line, completed=done, total=total), **options
        )
    if json:
        return print_json(result)
    for sentence in result["notes"]:
        note(sentence)
    print_rows(list(_rows(result)))
    for example in result["examples"]:
        mark = "right" if example["right"] else "wrong"
        print(f"\n{mark}  {printable(example['prompt'])}  (answer: {printable(example['answer'])})")
        print(f"       {printable(_on_one_line(example['reply']))}{'' if example['ended'] else ' …'}")
    return None


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    low, high = result["interval"]
    yield "task", f"{result['task']}, level {result['level']} ({result['about']}), {result['items']:,} test questions"
    chance = f"chance {result['chance']:.1%}"
    if result["temperature"]:
        chance += f"; sampled at temperature {result['temperature']:g}"
    yield "accuracy", f"{result['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}); {chance}"
    if result["pass_at"]:
        shares = ", ".join(f"pass@{k} {share:.1%}" for k, share in result["pass_at"].items())
        yield "sampled", f"{shares} ({result['attempts']} replies to each at temperature 1)"
    ended = f"{result['ended']:.1%} ended, {result['cut']:.1%} cut at {result['max_completion_length']} tokens"
    yield "replies", f"{result['answered']:.1%} have an answer, {result['well_formed']:.1%} a well-formed one; {ended}"
    calls = f", {result['tool_calls']:.2f} tool calls" if result["tool"] else ""
    yield "mean", f"{result['length']:.1f} tokens{calls}"
    for i, part in enumerate(result["by_length"]):
        letters = f"{part['from']} to {part['to']}" if part["from"] < part["to"] else f"{part['from']}"
        low, high = part["interval"]
        yield (
            "" if i else "by length",
            f"{part['accuracy']:6.1%} of {part['items']:,} with a {part['of']} of {letters} characters "
            f"({low:.1%} to {high:.1%})",
        )
    yield "checkpoint", f"{os.path.relpath(result['checkpoint'])} (step {result['step']:,})"
    if other := result.get("against"):
        yield from _compared(result["run"], other)


def _compared(name: str, other: dict[str, Any]) -> Iterator[tuple[str, str]]:
    low, high = other["difference_interval"]
    yield "against", f"{other['run']} (step {other['step']:,}): accuracy {other['accuracy']:.1%} on the same questions"
    yield (
        "difference",
        f"{100 * other['difference']:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}); only {name} "
        f"is right in {other['only_this_right']:,}, only {other['run']} in {other['only_other_right']:,}",
    )
    said = {
        "better": f"{name} is better than {other['run']}, beyond the 95 % interval.",
        "worse": f"{name} is worse than {other['run']}, beyond the 95 % interval.",
        "not clear": "Not clear which is better: the interval includes 0. More --items make it narrower.",
    }
    yield "", said[other["verdict"]]


def _on_one_line(text: str) -> str:
    return text.replace("\n", "⏎")
