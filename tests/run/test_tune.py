"""From a text to a model that answers: every stage after pretraining, on small real data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling.environments import find_environment
from groundling.run.parents import n_new_rows
from groundling.run.record import RunRecord
from groundling.tasks.prompts import TaskPrompts
from groundling.training.events import Evaluation, Event, Notice, Replies, Step
from tiny import TINY

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "sample_every": 0}


def rows(path: str, values: Sequence[Any]) -> str:
    Path(path).write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def items(n: int) -> list[tuple[str, str]]:
    """Question and answer of the task `count`, whose answers are small numbers, so that guesses are often right."""
    task = find_environment("count")
    return [(item.prompt, item.answer) for item in (task.item(i, "train", 1) for i in range(n))]


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> groundling.Run:
    folder = tmp_path_factory.mktemp("pretrained")
    text = folder / "text.txt"
    text.write_text("".join(f"{prompt}\n#{answer}\n" for prompt, answer in items(600)), encoding="utf-8")
    settings = TINY | {"block_size": 48, "sample_tokens": 0}
    return groundling.train(text, name="base", out=folder, on_event=lambda event: None, **settings)


@pytest.fixture(scope="session")
def fine_tuned(pretrained: groundling.Run, tmp_path_factory: pytest.TempPathFactory) -> groundling.Run:
    folder = tmp_path_factory.mktemp("tuned")
    chats = [{"prompt": prompt, "completion": f"#{answer}"} for prompt, answer in items(400)]
    data = rows(str(folder / "chats.jsonl"), chats)
    settings = QUICK | {"steps": 120, "learning_rate": 1e-2, "eval_every": 60}
    return groundling.sft(pretrained, data, name="sft", out=folder, on_event=lambda event: None, **settings)


def pairs(path: str = "pairs.jsonl") -> str:
    return rows(path, [
        {"prompt": prompt, "chosen": f"#{answer}", "rejected": f"#{int(answer) + 1}"} for prompt, answer in items(96)
    ])  # fmt: skip


def heard(verb: Any, *arguments: Any, **settings: Any) -> tuple[groundling.Run, list[Event]]:
    events: list[Event] = []
    return verb(*arguments, on_event=events.append, **QUICK | settings), events


def scores(events: list[Event]) -> list[Evaluation]:
    return [event for event in events if isinstance(event, Evaluation)]


def test_fine_tuning_keeps_the_parent_and_adds_markup(pretrained: groundling.Run, fine_tuned: groundling.Run) -> None:
    """Pretraining stays as it is. The new rows are the mean of the old ones, so nothing changes for the old tokens."""
    old, new = pretrained.tokenizer.vocab_size, fine_tuned.tokenizer.vocab_size
    assert new == old + 7 and pretrained.tokenizer.kind == "char"
    assert n_new_rows(fine_tuned.folder / "initial", new) == 7
    from groundling.model.weights_file import read_shapes, read_tensors

    path = fine_tuned.folder / "initial" / "model.safetensors"
    grown = read_tensors(path, read_shapes(path))["wte.weight"]
    before = pretrained.model.wte.weight.detach()
    assert (grown[:old] == before).all() and (grown[old:] - before.mean(0)).abs().max() < 1e-6
    (parent,) = fine_tuned.record.lineage
    assert (parent.run, parent.task, parent.step) == ("base", "pretraining", 40)
    assert fine_tuned.result is not None and fine_tuned.result["best_validation_loss"] < 1.2


def test_each_stage_follows_the_one_before(
    fine_tuned: groundling.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path on one small model, to an export that transformers reads and a chat that a server answers."""
    monkeypatch.setenv("GROUNDLING_RUNS", str(tmp_path / "runs"))
    preferred, events = heard(groundling.dpo, fine_tuned, pairs(), steps=20, learning_rate=1e-3, eval_every=10)
    first, *_, last = scores(events)
    assert first.validation_loss == pytest.approx(0.6931, abs=1e-3)  # ln 2: it is its own reference
    assert last.figures["accuracy"] > first.figures["accuracy"] and preferred.name == "sft-dpo"

    better, events = heard(
        groundling.grpo, preferred, task="count", level=1, steps=6, batch_size=64, eval_every=6, sample_every=6
    )
    assert any("pass@8" in event.sentence for event in events if isinstance(event, Notice))
    steps = [event for event in events if isinstance(event, Step)]
    assert all(0 <= step.figures["reward"] <= 1 and step.figures["sampling_gap"] < 1e-3 for step in steps)
    groups = next(event for event in events if isinstance(event, Replies)).groups
    assert len(groups[0].replies) == len(groups[0].rewards) == 8
    assert scores(events)[-1].metric == "accuracy"

    student, events = heard(
        groundling.distill, better, fine_tuned, task="count", level=1, on_policy=0.5, steps=6, batch_size=32
    )
    losses = [event.loss for event in events if isinstance(event, Step)]
    assert losses[-1] < losses[0]
    assert [fact.run for fact in student.record.lineage] == ["base", "sft"]
    assert student.record.others["teacher"].run == better.name
    assert [fact.task for fact in better.record.lineage] == ["pretraining", "sft", "dpo"]
    check_export(student)
    check_server(student)


def check_export(run: groundling.Run) -> None:
    """transformers writes the same reply with the exported chat template."""
    transformers = pytest.importorskip("transformers")
    groundling.export(run, to="huggingface", out="exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained("exported")
    model = transformers.AutoModelForCausalLM.from_pretrained("exported")
    messages = [{"role": "user", "content": items(1)[0][0]}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
    ours = run.chat(messages, max_new_tokens=6, temperature=0)
    assert tokenizer.decode(reply, skip_special_tokens=True) == ours


def check_server(run: groundling.Run) -> None:
    """OpenAI's client gets the same reply."""
    openai = pytest.importorskip("openai")
    messages: Any = [{"role": "user", "content": items(1)[0][0]}]

    async def ask() -> Any:
        with groundling.serve(run.folder, port=0) as server:  # in an event loop, it returns
            client = openai.AsyncOpenAI(base_url=server.url, api_key="-")
            return await client.chat.completions.create(model=run.name, messages=messages, temperature=0, max_tokens=6)

    assert asyncio.run(ask()).choices[0].message.content == run.chat(messages, max_new_tokens=6, temperature=0)


def test_a_reward_model_begins_at_zero_and_judges_replies(fine_tuned: groundling.Run) -> None:
    judge, events = heard(
        groundling.reward, fine_tuned, pairs(), steps=30, learning_rate=3e-3, eval_every=15, out="runs"
    )
    first, *_, last = scores(events)
    assert first.validation_loss == pytest.approx(0.6931, abs=1e-4) and first.figures["accuracy"] == 0.5
    assert last.figures["accuracy"] > 0.5 and judge.tokenizer.vocab_size == fine_tuned.tokenizer.vocab_size + 1
    prompts = rows("prompts.jsonl", [{"prompt": prompt} for prompt, _ in items(40)])
    options = {"reward": judge.folder, "steps": 2, "batch_size": 16, "max_completion_length": 6, "out": "runs"}
    tuned, events = heard(groundling.grpo, fine_tuned, prompts, **options)
    assert scores(events)[-1].metric == "reward" and tuned.record.others["reward"].run == judge.name
    assert (tuned.folder / "reward" / "model.safetensors").exists()

    again, _ = heard(groundling.grpo, fine_tuned, prompts, name="handle", **options | {"reward": judge, "steps": 1})
    assert again.config.method.reward == str(judge.checkpoint)  # a handle stands for its checkpoint
    chats = rows("chats.jsonl", [{"prompt": prompt, "completion": f"#{answer}"} for prompt, answer in items(40)])
    judged, _ = heard(groundling.grpo, fine_tuned, chats, name="judged", **options | {"steps": 1})
    student, _ = heard(groundling.distill, judged, fine_tuned, steps=1, out="runs")
    assert student.config.inputs == (str(Path(chats).resolve()),)  # what the teacher was trained on


def test_a_reward_model_is_used_as_nothing_else(pretrained: groundling.Run, fine_tuned: groundling.Run) -> None:
    judge, _ = heard(groundling.reward, fine_tuned, data := pairs(), steps=1, out="runs")
    sentence = r"is a reward model: it judges replies, and writes none\. Use the run that it was trained from, sft\."
    for verb, arguments, settings in (
        (groundling.sft, (judge, data), {"steps": 1}), (groundling.dpo, (judge, data), {"steps": 1}),
        (groundling.grpo, (judge,), {"task": "count"}), (groundling.distill, (judge, "nano", data), {"steps": 1}),
        (groundling.distill, (fine_tuned, judge, data), {"steps": 1}),
        (groundling.train, (data,), {"init_from": str(judge.folder)}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            heard(verb, *arguments, out="runs", **settings)
    for use in (
        judge.generate, lambda: judge.evaluate(data), lambda: judge.chat([{"role": "user", "content": "a"}]),
        lambda: groundling.export(judge, to="huggingface"), lambda: groundling.serve(judge.folder, port=0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            use()
    of_bytes = TINY | {"tokenizer": "byte", "format": "text", "steps": 1, "warmup_steps": 0}
    bytes_too, _ = heard(groundling.train, data, name="bytes", out="runs", **of_bytes)
    for policy, rewarding, sentence in (
        (fine_tuned, fine_tuned, r"The run sft is no reward model\. Train one on pairs: `groundling reward "),
        (bytes_too, judge, rf"{judge.name} and the run {bytes_too.name} have different tokenizers\. Train a reward"),
    ):
        with pytest.raises(ValueError, match=sentence):
            heard(groundling.grpo, policy, data, reward=rewarding, steps=1, out="runs")
    policy, _ = heard(groundling.grpo, pretrained, data, reward=judge, steps=1, batch_size=16, out="runs")
    assert policy.tokenizer == fine_tuned.tokenizer  # which is the judge's without the token of the reward


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "kto", "orpo", "simpo"])
def test_every_preference_loss_learns(loss_type: str, fine_tuned: groundling.Run) -> None:
    _, events = heard(
        groundling.dpo, fine_tuned, pairs(), loss_type=loss_type, steps=12, learning_rate=1e-3, eval_every=6, out="runs"
    )
    first, *_, last = scores(events)
    assert last.validation_loss < first.validation_loss


def test_packed_examples_are_trained_on(pretrained: groundling.Run) -> None:
    data = rows("chats.jsonl", [{"prompt": p, "completion": f"#{a}"} for p, a in items(60)])
    run, events = heard(groundling.sft, pretrained, data, packing=True, steps=30, learning_rate=1e-2, out="runs")
    assert scores(events)[-1].validation_loss < scores(events)[0].validation_loss / 2
    steps = [event for event in events if isinstance(event, Step)]
    assert run.config.method.packing and {step.tokens for step in steps[:1]} == {32 * 48}


def test_without_a_signal_nothing_is_trained(pretrained: groundling.Run) -> None:
    data = rows("chats.jsonl", [{"prompt": prompt, "completion": "no"} for prompt, _ in items(64)])
    mute, _ = heard(groundling.sft, pretrained, data, steps=40, learning_rate=1e-2, out="runs")
    with pytest.raises(ValueError, match=r"nothing to learn from: no answer is right\. Run `sft`"):
        heard(groundling.grpo, mute, task="count", level=1, steps=2, out="runs")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["base-sft"]


def test_with_nothing_left_to_learn_it_says_so(fine_tuned: groundling.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskPrompts, "rewards", lambda self, prompts, replies: [1.0] * len(replies))
    with pytest.raises(ValueError, match=r"all answers are right\. Use a harder --level\."):
        heard(groundling.grpo, fine_tuned, task="count", level=1, steps=2, out="runs")
    monkeypatch.setattr(TaskPrompts, "rewards", lambda self, prompts, replies: [p.item.index % 2 for p in prompts])
    with pytest.raises(ValueError, match=r"pass@1 50\.0%.* same prompt earn the same\. Use a higher --temperature\."):
        heard(groundling.grpo, fine_tuned, task="count", level=1, steps=2, out="runs")
    monkeypatch.setattr(TaskPrompts, "rewards", lambda self, prompts, replies: [0.0] * len(replies))
    with pytest.raises(ValueError, match=r"no answer is right\. Use a larger --max-completion-length"):
        heard(groundling.grpo, fine_tuned, task="count", level=1, max_completion_length=2, steps=2, out="runs")


def test_what_cannot_be_tuned_is_refused(pretrained: groundling.Run, fine_tuned: groundling.Run) -> None:
    data = rows("chats.jsonl", [{"prompt": prompt, "completion": "x"} for prompt, _ in items(8)])
    for verb, arguments, settings, sentence in (
        (groundling.grpo, (fine_tuned,), {}, "Give either a --task, or a --reward"),
        (groundling.grpo, (fine_tuned,), {"reward": str(fine_tuned.folder)}, "needs --prompts"),
        (groundling.grpo, (fine_tuned,), {"task": "sum"}, "did you mean 'sums'"),
        (groundling.grpo, (fine_tuned,), {"task": "multiply"}, "needs up to .* context is 48. Use an easier --level"),
        (groundling.grpo, (fine_tuned,), {"task": "sums", "level": 1}, "has no tokens for '[^']*', which"),
        (groundling.dpo, (fine_tuned, data), {}, r"line 1: expected a pair, with chosen and rejected"),
        (groundling.grpo, (fine_tuned, data), {"task": "count"}, "--prompts are for a --reward model"),
        (groundling.dpo, (fine_tuned, []), {}, r"There are no data for dpo\. Give a file"),
        (groundling.dpo, (fine_tuned, data), {"gamma": 1.0}, "--gamma does nothing without --loss-type simpo"),
        (groundling.sft, (pretrained, data), {"adapter_kind": "dora"}, "--adapter-kind does nothing without --adapter"),
        (groundling.distill, (fine_tuned, "small"), {"steps": 1}, "For a new student, choose a preset: nano, "),
        (groundling.sft, (pretrained, data), {"epochs": 0}, "--epochs must be above 0"),
        (
            groundling.sft,
            (pretrained, data),
            {"generations": 2, "n_layer": 3},
            "--generations, --n-layer cannot be set for sft",
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            heard(verb, *arguments, out="runs", **settings)


def test_its_data_are_no_text(fine_tuned: groundling.Run) -> None:
    with pytest.raises(ValueError, match=r"was trained on sft data, not on a text\. Give one with --text"):
        fine_tuned.evaluate()


def test_the_record_of_a_tuned_run_is_read_again(fine_tuned: groundling.Run) -> None:
    written = fine_tuned.record.to_dict()
    assert RunRecord.read(json.loads(json.dumps(written)), "it").to_dict() == written
    assert written["settings"]["method"]["epochs"] == 3.0 and written["settings"]["task"] == "sft"
