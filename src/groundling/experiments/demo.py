"""`groundling demo reasoning`: the whole path of post-training on this machine, and what each stage gained.

A model of 0.8M parameters reads a text of worked items, learns to answer (sft), prefers its right answers to its wrong
ones (dpo), is rewarded for right answers (grpo), and teaches a smaller one (distill). Then four models learn a task
that takes several steps of thought: with the working before the answer, and three controls without it. All accuracies
are of the same held-out items, which no training has seen. On the path, one sampled reply to each is judged, since that
is what rewards act on. Of the models that think, it is the most likely reply.

Everything is kept in one folder. The same command continues where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.environments import find_environment
from groundling.environments.environment import Item, Style
from groundling.machine import default_torch
from groundling.run.run import Run
from groundling.run.train import resume, train
from groundling.run.tune import distill, dpo, grpo, sft
from groundling.tasks.prompts import TaskPrompts, last_turn
from groundling.tasks.replies import sample_groups
from groundling.training.events import Subscriber

CONTROLS: tuple[Style, ...] = ("working", "answer", "shuffled", "answer-first")
_MARKS = "#;|"  # so that the tokenizer knows them, whatever the style of the text
_AFTER = 1_000_000  # items from here on are for pairs, so that no stage sees a question twice


@dataclass(frozen=True)
class Recipe:
    """The sizes of a demonstration. Rates and steps were found by trying; docs/LOG.md has the figures."""

    task: str = "reverse"
    level: int = 2
    thinking_task: str = "count"
    thinking_level: int = 2
    examples: int = 30_000
    model: dict[str, Any] = field(default_factory=lambda: {"preset": "nano", "block_size": 64, "batch_size": 64})
    student: dict[str, Any] = field(default_factory=lambda: {"n_layer": 3, "n_embd": 96})
    student_steps: int = 320
    pretraining_steps: int = 150
    first_piece: int = 160
    piece: int = 10
    """Steps of sft before the first look at the accuracy, and between two. It ends at `goal`, so that something is left
    to learn."""
    goal: float = 0.7
    most_steps: int = 600
    pair_prompts: int = 512
    dpo_steps: int = 60
    grpo_steps: int = 160
    distill_steps: int = 160
    thinking_steps: int = 600
    batch_size: int = 64
    rewarded: int = 256
    items: int = 1_000


RECIPES = {"reasoning": Recipe()}
_KEPT = ("task", "level", "items", "temperature", "accuracy", "interval", "chance", "by_length")
_Stage = tuple[str, Run, str, int, float, Run | None]
"""Name, run, the task and level on which it is judged, the temperature of the replies, and the run that it should be
better than."""


@default_torch()
def demo(
    folder: Path, recipe: Recipe, on_event: Subscriber = lambda event: None, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Run the demonstration in `folder`. Returns a row for each stage: its name, run, what it is compared with, and the
    figures of `score_task`. `say` gets a sentence for each stage."""
    makers = _Demo(folder, recipe, on_event)
    rows = list[dict[str, Any]]()
    for stage, run, task, level, temperature, parent in chain(makers.path(), makers.thinking()):
        judged: dict[str, Any] = {"level": level, "items": recipe.items, "attempts": 0, "temperature": temperature}
        found = run.evaluate_task(task, **judged, against=parent)
        row = {"stage": stage, "run": run.name, "minutes": _minutes(run), "parent": parent.name if parent else None}
        rows.append(row | {key: found[key] for key in _KEPT})
        rows[-1] |= {"against": found.get("against")}
        say(_sentence(rows[-1]))
        storage.write_json(folder / "demo.json", {"rows": rows})
    return rows


class _Demo:
    def __init__(self, folder: Path, recipe: Recipe, on_event: Subscriber) -> None:
        self.folder, self.recipe, self.on_event = folder, recipe, on_event
        self.runs = folder / "runs"
        storage.make_folder(self.runs)
        self.settings = {"out": self.runs, "on_event": on_event}

    def path(self) -> Iterator[_Stage]:
        """The stages of the path."""
        r = self.recipe
        data = self._examples(r.task, r.level, "answer")
        base = self._pretrained("base", r.task, r.level, "answer")
        tuned = self._until_goal("sft", base, data)
        yield "sft", tuned, r.task, r.level, 1.0, None
        pairs = self._pairs(tuned)
        better = self._made(
            # With the anchor, since without it the right replies became less likely, too.
            "dpo", dpo, tuned, pairs, steps=r.dpo_steps, batch_size=16, learning_rate=5e-5, anchor=1.0,
        )  # fmt: skip
        yield "dpo", better, r.task, r.level, 1.0, tuned
        rewarded = self._made(
            "grpo", grpo, better, task=r.task, level=r.level, steps=r.grpo_steps, batch_size=r.rewarded,
            learning_rate=3e-4, schedule="constant", warmup_steps=min(10, r.grpo_steps // 2), sample_every=r.grpo_steps,
        )  # fmt: skip
        yield "grpo", rewarded, r.task, r.level, 1.0, better
        small = self._pretrained("small-base", r.task, r.level, "answer", **r.student)
        student = self._made(
            "small-sft", sft, small, data, steps=r.student_steps, batch_size=r.batch_size, learning_rate=2e-3,
            schedule="constant",
        )  # fmt: skip
        taught = self._made(
            "distill", distill, rewarded, student, task=r.task, level=r.level, on_policy=0.5, steps=r.distill_steps,
            batch_size=r.rewarded, learning_rate=1e-3,
        )  # fmt: skip
        yield "distill (a third of the size)", taught, r.task, r.level, 1.0, student

    def thinking(self) -> Iterator[_Stage]:
        """Models that were trained on as many tokens, with the working before the answer and without."""
        r = self.recipe
        base = self._pretrained("thinking-base", r.thinking_task, r.thinking_level, "working")
        lengths = {style: self._tokens(r.thinking_task, r.thinking_level, style) for style in CONTROLS}
        first: Run | None = None
        for style in CONTROLS:
            data = self._examples(r.thinking_task, r.thinking_level, style)
            # As many tokens for each, so shorter replies make more steps.
            steps = round(r.thinking_steps * lengths["working"] / lengths[style])
            run = self._made(
                f"thinking-{style}", sft, base, data, steps=steps, batch_size=r.batch_size, learning_rate=2e-3
            )
            first = first or run
            other = None if run is first else first
            yield f"sft, {_STYLES[style]}", run, r.thinking_task, r.thinking_level, 0.0, other

    def _made(self, name: str, verb: Callable[..., Run], *arguments: Any, **settings: Any) -> Run:
        """The run of that name: as it is if it is finished, else trained."""
        if (self.runs / name / "result.json").exists():
            return Run((self.runs / name).resolve())
        every = {"eval_every": max(1, settings["steps"] // 4), "sample_every": 0}
        return _finished(verb(*arguments, name=name, **self.settings, **(every | settings)))

    def _pretrained(self, name: str, task: str, level: int, style: Style, **model: Any) -> Run:
        def lines(item: Item, messages: Any) -> str:
            return f"{item.prompt}\n{messages[-1].content}\n\n"

        text = self._file(f"{task}-{style}.txt", lines, task, level, style, begin=f"{_MARKS}\n\n")
        settings = {"compile": "off", "eval_tokens": 16_384, "learning_rate": 4e-3}
        return self._made(
            name, train, text, steps=self.recipe.pretraining_steps, **settings | self.recipe.model | model
        )

    def _until_goal(self, name: str, parent: Run, data: Path) -> Run:
        """Fine-tune a few steps at a time, until the goal."""
        r = self.recipe
        run = self._made(
            name, sft, parent, data, steps=r.first_piece, batch_size=r.batch_size, learning_rate=2e-3,
            schedule="constant",
        )  # fmt: skip
        while (done := run.checkpoints.steps()[-1]) < r.most_steps:
            if run.evaluate_task(r.task, level=r.level, items=256, attempts=0)["accuracy"] >= r.goal:
                break
            run = Run(_finished(resume(run, steps=done + r.piece, on_event=self.on_event)).folder)
        return run

    def _pairs(self, run: Run) -> Path:
        """A right and a wrong reply of the run to the same question, for each question that had both."""
        r, file = self.recipe, self.folder / "pairs.jsonl"
        if file.exists():
            return file
        prompts = TaskPrompts(r.task, r.level, run.tokenizer, run.config.model.block_size)  # type: ignore[arg-type]
        lines = list[str]()
        for start in range(_AFTER, _AFTER + r.pair_prompts, 32):
            for group in sample_groups(run.model, prompts, "train", range(start, start + 32), 8, [start], 1.0):
                if group.has_signal and group.prompt.item:
                    right, wrong = (group.replies[group.rewards.index(reward)] for reward in (1.0, 0.0))
                    chosen, rejected = (last_turn(reply, prompts.tokenizer) for reply in (right, wrong))
                    pair = {"chosen": chosen, "rejected": rejected}
                    lines.append(json.dumps({"prompt": group.prompt.item.prompt, **pair}) + "\n")
        storage.write_file(file, "".join(lines))
        return file

    def _examples(self, task: str, level: int, style: Style) -> Path:
        def line(item: Item, messages: Any) -> str:
            return json.dumps({"prompt": item.prompt, "completion": messages[-1].content}) + "\n"

        return self._file(f"{task}-{style}.jsonl", line, task, level, style)

    def _file(self, name: str, line: Callable[..., str], task: str, level: int, style: Style, begin: str = "") -> Path:
        file = self.folder / name
        if not file.exists():
            environment = find_environment(task)
            items = (environment.item(i, "train", level) for i in range(self.recipe.examples))
            storage.write_file(file, begin + "".join(line(item, environment.messages(item, style)) for item in items))
        return file

    def _tokens(self, task: str, level: int, style: Style) -> float:
        """Characters of an example, on average of a few."""
        environment = find_environment(task)
        items = [environment.item(i, "train", level) for i in range(50)]
        return sum(len(item.prompt) + len(environment.messages(item, style)[-1].content) + 6 for item in items) / 50


_STYLES = {
    "working": "working, then answer", "answer": "answer alone", "shuffled": "another item's working",
    "answer-first": "answer, then working",
}  # fmt: skip


class Stopped(Exception):
    """The user stopped the demonstration, by this signal. Everything is saved."""


def _finished(run: Run) -> Run:
    """The run. Raises Stopped if it was stopped."""
    if run.stopped_by is not None:
        raise Stopped(run.stopped_by)
    return run


def _minutes(run: Run) -> float:
    return float((run.result or {}).get("elapsed", 0.0)) / 60


def _sentence(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    said = f"{row['stage']:32} {row['accuracy']:6.1%} ({low:.1%} to {high:.1%}) of {row['items']:,} {row['task']} items"
    if row["against"]:
        low, high = row["against"]["difference_interval"]
        said += f"; {row['against']['difference']:+.1%} against {row['parent']} ({low:+.1%} to {high:+.1%})"
    return f"{said}; {row['minutes']:.1f} min"
