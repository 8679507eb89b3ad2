"""Score a model on the test part of a task with verifiable rewards: its accuracy, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from groundling.config import limits
from groundling.data.progress import silent
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.escape import command
from groundling.evaluation.intervals import paired_difference, pass_at_k, wilson
from groundling.machine import default_torch
from groundling.run.folder import RunFolder
from groundling.tasks.prompts import TaskPrompts, last_turn
from groundling.tasks.replies import Group, figures_of, sample_groups

_ROWS = 256  # replies at once: more would only take more memory
_MOST_REPEATS = 1_000  # items in a row that came before: then the test part has no others
_SHOWN, _BINS = 4, 4
_JUDGED, _SAMPLED = 0, 1  # kinds of replies, each with its own random numbers


@default_torch()
def score_task(
    run: RunFolder,
    name: str,
    *,
    level: int = 0,
    items: int = 256,
    attempts: int = 8,
    temperature: float = 0.0,
    tool: bool = False,
    seed: int = 0,
    against: RunFolder | None = None,
    progress: Callable[[int, int], None] = silent,
) -> dict[str, Any]:
    """Ask the run the first `items` different questions of the task's test part, which no training has seen.

    Args:
        level: of the task; 0 is its default.
        attempts: replies to sample for each question at temperature 1, for pass@k. 0: none.
        temperature: of the reply to each question that is judged. 0: the most likely reply.
        tool: answer calls of the calculator.
        seed: of the sampled replies.
        against: another run to ask the same questions, such as this one's parent.
        progress: called with the replies so far, and all.

    Returns JSON-ready values: `accuracy` of the judged replies with its 95 % `interval`, `pass_at` by k, what they were
    like, `examples`, `notes`, and with `against` the paired difference of the two accuracies.

    Raises ValueError with a sentence for the user if the run writes no replies, or cannot read the task.
    """
    numbers = {"level": level, "items": items, "attempts": attempts, "seed": seed, "temperature": temperature}
    for option, value in numbers.items():
        limits.TASK[option].check(f"--{option}", value)
    prompts = _prompts(run, name, level, tool)
    other = None if against is None else _prompts(against, name, level, tool)
    indices = list(islice(_different(prompts), items))
    n, total = 0, len(indices) * (1 + attempts + (other is not None))

    def answers(run: RunFolder, prompts: TaskPrompts, tries: int = 1, kind: int = _JUDGED) -> Iterator[Group]:
        nonlocal n
        size = max(1, _ROWS // tries)
        for start in range(0, len(indices), size):
            progress(n, total)
            here, seeds = indices[start : start + size], [seed, kind, start]
            warmth = temperature if kind == _JUDGED else 1.0
            yield from sample_groups(run.model, prompts, "test", here, tries, seeds, warmth)
            n += len(here) * tries
        progress(n, total)

    groups = list(answers(run, prompts))
    right = np.array([group.rewards[0] == 1 for group in groups])
    counts = [int(sum(group.rewards)) for group in answers(run, prompts, attempts, _SAMPLED)] if attempts else []
    found = {
        "run": run.name, "step": run.step, "checkpoint": str(run.checkpoint), "task": prompts.name,
        "level": prompts.level, "about": prompts.environment.levels[prompts.level], "items": len(indices),
        "tool": tool, "seed": seed, "attempts": attempts, "temperature": temperature, **_measured(right),
        "chance": prompts.environment.chance(prompts.level),
        "pass_at": {k: float(np.mean([pass_at_k(attempts, c, k) for c in counts])) for k in _powers(attempts)},
        **_described(groups, prompts), "by_length": _by_length(groups, right),
        "examples": _examples(groups, right, prompts), "notes": list(_notes(groups, prompts, items, tool)),
    }  # fmt: skip
    if against is not None and other is not None:
        theirs = np.array([group.rewards[0] == 1 for group in answers(against, other)])
        found["against"] = {"run": against.name, "step": against.step} | _measured(theirs) | _compared(right, theirs)
    return found


def _prompts(run: RunFolder, name: str, level: int, tool: bool) -> TaskPrompts:
    run.check_writes()
    if not isinstance(run.tokenizer, ChatTokenizer):
        tune = command("tasks", name, "--write", "examples.jsonl"), command("sft", run.reference, "examples.jsonl")
        raise ValueError(
            f"The run {run.name} has no chat template, so it answers no questions. Tune it on examples of the task "
            f"first: `{tune[0]}`, then `{tune[1]}`."
        )
    return TaskPrompts(name, level, run.tokenizer, run.config.model.block_size, tool=tool)


def _different(prompts: TaskPrompts) -> Iterator[int]:
    """The indices of items in the test part whose question did not come before."""
    seen, index, last = set[str](), 0, 0
    while index - last < _MOST_REPEATS:
        question = prompts.environment.item(index, "test", prompts.level).prompt
        if question not in seen:
            seen.add(question)
            last = index
            yield index
        index += 1


def _measured(right: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    n = int(right.sum())
    return {"right": n, "accuracy": n / len(right), "interval": wilson(n, len(right))}


def _powers(attempts: int) -> list[int]:
    """1, 2, 4, ... and `attempts`."""
    return sorted({2**i for i in range(attempts.bit_length())} | {attempts}) if attempts else []


def _described(groups: Sequence[Group], prompts: TaskPrompts) -> dict[str, float]:
    """What the judged replies were like: shares of all, and means."""
    scores = [
        prompts.environment.score(group.prompt.item, last_turn(group.replies[0], prompts.tokenizer))
        for group in groups
        if group.prompt.item is not None
    ]
    figures = figures_of(groups, prompts.max_completion_length)
    return {
        "answered": float(np.mean([score["answered"] for score in scores])),
        "well_formed": float(np.mean([score["well_formed"] for score in scores])),
        "ended": 1 - figures["cut"], "cut": figures["cut"], "length": figures["length"],
        "tool_calls": figures.get("tool_calls", 0.0), "max_completion_length": prompts.max_completion_length,
    }  # fmt: skip


def _by_length(groups: Sequence[Group], right: np.ndarray[Any, np.dtype[np.bool_]]) -> list[dict[str, Any]]:
    """Accuracy by how long the working of an item is, or its question where it has none: in up to four parts."""
    items = [group.prompt.item for group in groups if group.prompt.item is not None]
    of = "working" if all(item.working for item in items) else "question"
    lengths = np.array([len(item.working if of == "working" else item.prompt) for item in items])
    edges = np.unique(lengths)
    if len(edges) > _BINS:
        edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _BINS + 1)[1:], method="lower"))
    parts = np.searchsorted(edges, lengths)
    rows = []
    for part in np.unique(parts):
        here = parts == part
        low, high = int(lengths[here].min()), int(lengths[here].max())
        rows.append({"of": of, "from": low, "to": high, "items": int(here.sum())} | _measured(right[here]))
    return rows if len(rows) > 1 else []


def _examples(
    groups: Sequence[Group], right: np.ndarray[Any, np.dtype[np.bool_]], prompts: TaskPrompts
) -> list[dict[str, Any]]:
    """The first right and the first wrong replies."""
    rows = []
    for wanted in (True, False):
        for i in np.flatnonzero(right == wanted)[:_SHOWN]:
            item, (reply,) = groups[i].prompt.item, groups[i].replies
            assert item is not None
            text = prompts.tokenizer.decode_with_markup(reply.tokens)
            ended = reply.finish == "end"
            rows.append({"right": wanted, "prompt": item.prompt, "reply": text, "answer": item.answer, "ended": ended})
    return rows


def _notes(groups: Sequence[Group], prompts: TaskPrompts, items: int, tool: bool) -> Iterator[str]:
    if len(groups) < items:
        yield f"The test part has only {len(groups):,} different questions at this level, not {items:,}."
    calls = np.mean([bool(prompts.tokenizer.parse(group.replies[0].tokens).calls) for group in groups])
    if calls and not tool:
        yield f"{calls:.0%} of the replies call the calculator, and nobody answers. Use --tool."


def _compared(ours: np.ndarray[Any, np.dtype[np.bool_]], theirs: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    """How much better the first is on the same items: the difference of the accuracies, and its 95 % interval."""
    counts = [int((a & b).sum()) for a, b in ((ours, theirs), (ours, ~theirs), (~ours, theirs), (~ours, ~theirs))]
    low, high = paired_difference(*counts)
    names = ("both_right", "only_this_right", "only_other_right", "both_wrong")
    return {
        **dict(zip(names, counts, strict=True)), "difference": float(ours.mean() - theirs.mean()),
        "difference_interval": (low, high), "verdict": "better" if low > 0 else "worse" if high < 0 else "not clear",
    }  # fmt: skip
