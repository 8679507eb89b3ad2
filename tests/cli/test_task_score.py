"""`eval --task`: the figures are those of the replies, counted again by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import groundling
from groundling.data.conversations import Message, ToolCall
from groundling.environments import find_environment
from groundling.environments.environment import Environment
from groundling.evaluation.intervals import pass_at_k, wilson
from groundling.inference.rollouts import sample_rollouts
from tiny import TINY


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> groundling.Run:
    """A run that says how often a letter is in a word: `#1`, which is often right. Beside it are `young`, which knows
    less, and `caller`, which asks the calculator for 1+1, whatever the sum is."""
    folder = tmp_path_factory.mktemp("counting")
    common: dict[str, Any] = {"out": folder, "on_event": lambda event: None, "sample_every": 0, "warmup_steps": 0}
    (folder / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz 0123456789+-=#;:\n" * 30)
    size = TINY | {"n_layer": 1, "block_size": 64, "steps": 1} | common
    parent = groundling.train(folder / "text.txt", name="parent", **size)
    count, sums = find_environment("count"), find_environment("sums")
    chats = [count.messages(count.item(i, "train", 1), "answer") for i in range(200)]
    calls = (Message("assistant", calls=(ToolCall("calculator", '{"expression": "1+1"}'),)), Message("tool", "2"))
    called: list[tuple[Message, ...]] = [
        (Message("user", sums.item(i, "train", 1).prompt), *calls, Message("assistant", "#2")) for i in range(50)
    ]
    files = {name: _write(folder / f"{name}.jsonl", rows) for name, rows in (("counting", chats), ("caller", called))}
    settings = {"learning_rate": 1e-2, "eval_every": 200, "checkpoint_every": 200, **common}
    groundling.sft(parent, files["counting"], name="young", steps=2, **settings)
    groundling.sft(
        parent, files["caller"], name="caller", steps=100, batch_size=12, **settings | {"learning_rate": 2e-2}
    )
    return groundling.sft(parent, files["counting"], name="counting", steps=40, **settings)


def _write(path: Path, chats: list[tuple[Message, ...]]) -> Path:
    lines = [{"messages": [_message(m.role, m.content, m.calls) for m in chat]} for chat in chats]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def _message(role: str, content: str, calls: Any) -> dict[str, Any]:
    called = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
    return {"role": role, "content": content, "tool_calls": called}


@pytest.fixture
def run(counting: groundling.Run, monkeypatch: pytest.MonkeyPatch) -> groundling.Run:
    monkeypatch.setenv("GROUNDLING_RUNS", str(counting.folder.parent))
    return counting


@pytest.fixture
def count() -> Environment:
    return find_environment("count")


def test_the_accuracy_is_that_of_the_chat(run: groundling.Run, count: Environment) -> None:
    found = run.evaluate_task("count", level=1, items=40, attempts=0)
    items = [count.item(i, "test", 1) for i in range(40)]
    replies = [run.chat([{"role": "user", "content": item.prompt}], temperature=0) for item in items]
    right = [count.reward(item, reply) for item, reply in zip(items, replies, strict=True)]
    assert 0 < found["right"] == sum(right) < 40 == found["items"]
    assert found["accuracy"] == np.mean(right) and found["interval"] == wilson(int(sum(right)), 40)
    assert found["answered"] == np.mean(["#" in reply for reply in replies]) == 1
    assert found["well_formed"] == found["ended"] == 1 - found["cut"] == 1
    assert found["length"] == pytest.approx(np.mean([len(reply) + 1 for reply in replies]))  # and the end of turn
    assert found["chance"] == count.chance(1) and found["pass_at"] == {} and found["tool_calls"] == 0
    assert sum(part["right"] for part in found["by_length"]) == found["right"]
    assert sum(part["items"] for part in found["by_length"]) == 40
    assert {part["from"] for part in found["by_length"]} == {len(item.working) for item in items}
    examples = {(example["prompt"], example["right"]) for example in found["examples"]}
    assert examples <= {(item.prompt, reward == 1) for item, reward in zip(items, right, strict=True)}
    assert [example["right"] for example in found["examples"]].count(True) == 4
    assert all(example["reply"].endswith("<|im_end|>") for example in found["examples"])


def test_pass_at_k_counts_sampled_replies(run: groundling.Run, count: Environment) -> None:
    found = run.evaluate_task("count", level=1, items=40, attempts=6, seed=3)
    assert found["pass_at"].keys() == {1, 2, 4, 6}
    assert found == run.evaluate_task("count", level=1, items=40, attempts=6, seed=3)
    other = run.evaluate_task("count", level=1, items=40, attempts=6)
    assert other["pass_at"] != found["pass_at"] and other["accuracy"] == found["accuracy"]

    tokenizer: Any = run.tokenizer
    items = [count.item(i, "test", 1) for i in range(40)]
    prompts = [[*tokenizer.render(count.messages(item)[:1], add_generation_prompt=True).ids] for item in items]
    replies = sample_rollouts(run.model, prompts * 50, range(2_000), 8, tokenizer.end_ids)
    rewards = [count.reward(items[i % 40], tokenizer.decode(reply.tokens)) for i, reply in enumerate(replies)]
    counts = np.array(rewards).reshape(50, 40).sum(0)
    for k, share in found["pass_at"].items():  # of 240 replies and of 2,000
        assert share == pytest.approx(np.mean([pass_at_k(50, int(c), k) for c in counts]), abs=0.1)


def test_a_sampled_reply_can_be_judged(run: groundling.Run) -> None:
    found = run.evaluate_task("count", level=1, items=300, attempts=0, temperature=1.0, against=run)
    sampled = run.evaluate_task("count", level=1, items=300, attempts=16, seed=1)["pass_at"][1]
    assert found["accuracy"] == pytest.approx(sampled, abs=0.08) and found["against"]["difference"] == 0
    cold = run.evaluate_task("count", level=1, items=300, attempts=0, temperature=1e-3)
    assert cold["right"] == run.evaluate_task("count", level=1, items=300, attempts=0)["right"] != found["right"]


def test_more_items_ask_the_same_ones_first(run: groundling.Run, count: Environment) -> None:
    few, more = (run.evaluate_task("count", level=1, items=n, attempts=0) for n in (10, 300))
    assert {example["prompt"] for example in few["examples"]} <= {count.item(i, "test", 1).prompt for i in range(10)}
    assert more["interval"][1] - more["interval"][0] < few["interval"][1] - few["interval"][0]


def test_no_question_is_asked_twice(run: groundling.Run) -> None:
    reverse = find_environment("reverse")
    there = {reverse.item(i, "test", 1).prompt for i in range(5_000)}
    found = run.evaluate_task("reverse", level=1, items=5_000, attempts=0)
    n = found["items"]
    assert len(there) <= n < len(there) + 10  # it looks a little further
    assert found["notes"] == [f"The test part has only {n:,} different questions at this level, not 5,000."]


def test_the_calculator(run: groundling.Run) -> None:
    caller = groundling.load("caller")
    without = caller.evaluate_task("sums", level=1, items=10, attempts=0)
    assert without["notes"] == ["100% of the replies call the calculator, and nobody answers. Use --tool."]
    assert without["tool_calls"] == without["answered"] == 0
    with_it = caller.evaluate_task("sums", level=1, items=10, attempts=0, tool=True)
    assert not with_it["notes"] and with_it["tool_calls"] == with_it["answered"] == 1
    assert with_it["examples"][0]["reply"].endswith("<|im_start|>assistant\n#2<|im_end|>")


def test_two_runs_on_the_same_items(run: groundling.Run, cli: Any) -> None:
    young = groundling.load("young")
    found = run.evaluate_task("count", level=1, items=200, attempts=0, against=young)["against"]
    counts = [found[name] for name in ("both_right", "only_this_right", "only_other_right", "both_wrong")]
    assert sum(counts) == 200 and found["right"] == counts[0] + counts[2]
    alone = run.evaluate_task("count", level=1, items=200, attempts=0)
    assert alone["right"] == counts[0] + counts[1]
    assert found["difference"] == alone["accuracy"] - found["accuracy"] > 0.1
    assert found["difference_interval"][0] > 0 and found["verdict"] == "better"
    assert young.evaluate_task("count", level=1, items=200, attempts=0, against=run)["against"]["verdict"] == "worse"

    words = ("eval", "counting", "--task", "count", "--level", "1", "--items", "60", "--attempts", "2")
    done = cli(*words, "--against", "counting")
    assert (done.status, done.err) == (0, "")
    assert "difference  +0.0 points (95 % interval" in done.out
    assert "Not clear which is better: the interval includes 0. More --items make it narrower." in done.out
    value = json.loads(cli(*words, "--json").out)
    assert value["pass_at"].keys() == {"1", "2"} and value["items"] == 60
    low, high = value["interval"]
    assert f"accuracy    {value['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}); chance" in done.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("parent --task count", "The run parent has no chat template, so it answers no questions. Tune it on examples "
         "of the task first: `groundling tasks count --write examples.jsonl`, then `groundling sft parent examples."),
        ("counting --task counting", "There is no environment 'counting' (did you mean 'count'?)"),
        ("counting --task count --level 9", "--level must be at most 3, not 9."),
        ("counting --task countdown --level 3", "needs up to"),
        ("counting --task count --sliding", "--task asks questions."),
        ("counting --items 5", "need a --task."),
        ("counting --task count --against nobody", "No run 'nobody'"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("run")
def test_what_cannot_be_scored_is_refused_with_a_sentence(words: str, sentence: str, cli: Any) -> None:
    done = cli("eval", *words.split())
    assert done.status == 1 and done.out == ""
    assert sentence in done.err and len(done.err.splitlines()) == 1


def test_a_reward_model_writes_no_replies(run: groundling.Run, tmp_path: Path) -> None:
    pairs = [{"prompt": f"a {i}", "chosen": "#1", "rejected": "#2"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    judge = groundling.reward(run, tmp_path / "pairs.jsonl", steps=1, out=tmp_path, on_event=lambda event: None)
    with pytest.raises(ValueError, match="is a reward model: it judges replies, and writes none"):
        judge.evaluate_task("count")
