"""The demonstration of post-training, far smaller than it is for people."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from groundling.experiments.demo import CONTROLS, RECIPES, Stopped, demo
from groundling.experiments.demo_picture import draw
from groundling.run.run import Run
from groundling.training.events import Event, Step

TINY = replace(
    RECIPES["reasoning"], task="count", level=1, thinking_task="count", thinking_level=1, examples=300,
    model={"preset": "nano", "block_size": 64, "batch_size": 8, "n_layer": 1, "n_embd": 32, "n_head": 2},
    student={"n_embd": 16}, student_steps=10, pretraining_steps=10, first_piece=10, piece=10, goal=0.2, most_steps=120,
    pair_prompts=64, dpo_steps=4, grpo_steps=3, distill_steps=3, thinking_steps=8, batch_size=32, rewarded=32, items=24,
)  # fmt: skip


def test_every_stage_is_measured_against_the_one_before(tmp_path: Path) -> None:
    said: list[str] = []
    heard: list[list[str]] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        heard.append(sorted(path.name for path in (tmp_path / "demo" / "runs").iterdir()))

    rows = demo(tmp_path / "demo", TINY, say=say)
    assert [row["stage"].split(",")[0] for row in rows[:3]] == ["sft", "dpo", "grpo"]
    assert len(rows) == len(said) == 4 + len(CONTROLS)
    assert heard[0] == ["base", "sft"]  # each stage is judged before the next one begins
    runs = {path.name: Run(path) for path in (tmp_path / "demo" / "runs").iterdir()}
    assert {fact.run for fact in runs["grpo"].record.lineage} == {"base", "sft", "dpo"}
    assert rows[2]["parent"] == "dpo" and rows[2]["against"]["run"] == "dpo"
    assert rows[0]["accuracy"] > 0
    pairs = [json.loads(line) for line in (tmp_path / "demo" / "pairs.jsonl").read_text().splitlines()]
    assert pairs and all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert draw(rows, tmp_path / "demo.png").stat().st_size > 10_000
    again: list[str] = []
    assert demo(tmp_path / "demo", TINY, say=again.append) == rows  # nothing is trained a second time
    assert again == said


def test_a_stop_ends_it(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        demo(tmp_path, TINY, on_event=stop)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["base"]


def test_the_recipe_fits_its_tasks() -> None:
    for recipe in RECIPES.values():
        assert recipe.items >= 1_000 and recipe.model["block_size"] == 64 and 0 < recipe.goal <= 0.7


@pytest.mark.slow
def test_the_whole_demonstration(tmp_path: Path) -> None:
    """Each stage is better than the one before, and thinking helps."""
    rows = {row["stage"]: row for row in demo(tmp_path, RECIPES["reasoning"])}
    for row in list(rows.values())[1:4]:
        assert row["against"]["verdict"] == "better", row
    working = rows["sft, working, then answer"]["accuracy"]
    assert all(
        row["accuracy"] < working - 0.2 for stage, row in rows.items() if stage.startswith("sft, ") and row["against"]
    )
