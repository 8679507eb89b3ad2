"""A step of any method has the same gradient however it is cut, and one without anything to learn changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from groundling.config import Config
from groundling.data.conversations import Conversation, Message, Preference, Row
from groundling.data.examples import Kind, examples_of
from groundling.data.tokenizers.base import CharTokenizer
from groundling.data.tokenizers.chat import with_chat, with_reward
from groundling.machine import choose
from groundling.model.adapter import AdapterSpec
from groundling.model.initial import InitialModel
from groundling.model.weights_file import write_tensors
from groundling.tasks import new_task
from groundling.tasks.prompts import TaskPrompts
from groundling.training.checkpoints import Checkpoints
from groundling.training.divergence import DivergedError
from groundling.training.events import Event, OutOfMemory, RolledBack, Skipped, Step
from groundling.training.out_of_memory import halved
from groundling.training.step import micro_batches
from groundling.training.task import Loss
from groundling.training.trainer import Trainer

SIZE: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 48}
TINY: dict[str, Any] = {
    "steps": 24, "batch_size": 8, "eval_every": 12, "checkpoint_every": 12, "sample_every": 0, "learning_rate": 1e-2,
    "device": "cpu", "dtype": "float32", "keep_checkpoints": 0, "log_every": 1,
}  # fmt: skip
_TASK = {"task": "reverse", "level": 1, "num_generations": 4}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}), "sft, packed": ("sft", {"packing": True}), "sft, adapter": ("sft", {"adapter": 2}),
    "reward": ("reward", {}),
    **{f"dpo, {kind}": ("dpo", {"loss_type": kind}) for kind in ("sigmoid", "ipo", "hinge", "kto", "orpo", "simpo")},
    **{f"grpo, {kind}": ("grpo", _TASK | {"loss_type": kind}) for kind in ("dr_grpo", "grpo", "dapo", "rloo")},
    "grpo, near the parent": ("grpo", _TASK | {"beta": 0.1, "scale_rewards": "group", "baseline": "loo"}),
    "grpo, groups of 5": ("grpo", _TASK | {"num_generations": 5}),
    "distill": ("distill", {"divergence": "jsd"}),
    "distill, own replies": ("distill", {"task": "reverse", "level": 1, "on_policy": 1.0}),
}  # fmt: skip
_PAIRS = ("dpo", "reward")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """A trainer of a method, on replies of many lengths. What a reply to a task earns has no meaning, but varies."""
    monkeypatch.setattr(
        TaskPrompts, "rewards", lambda self, prompts, replies: [float(sum(reply.tokens) % 7) for reply in replies]
    )
    monkeypatch.setattr(TaskPrompts, "n_validation", 4)

    def make(method: str, folder: Path = tmp_path, **settings: Any) -> Trainer:
        verb, own = METHODS[method]
        tokenizer = with_chat(CharTokenizer(sorted("\n :;#0123456789abcdefghijklmnopqrstuvwxyz")))
        tokenizer = with_reward(tokenizer) if verb == "reward" else tokenizer
        parent = Config.build("", "nano", **SIZE)
        config = Config.tuning(verb, "", parent, str(tmp_path), **TINY | own | settings)
        seeds = InitialModel(config.model, tokenizer.vocab_size, 1), InitialModel(config.model, tokenizer.vocab_size, 2)
        for name, random in zip(("first", "second"), seeds, strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            write_tensors(tmp_path / name / "model.safetensors", random.build().state_dict())
        initial = InitialModel(config.model, tokenizer.vocab_size, 1, tmp_path / "first")
        others = {"teacher": InitialModel(config.model, tokenizer.vocab_size, 1, tmp_path / "second")}
        data: Any = None
        if "task" in own:
            data = TaskPrompts("reverse", 1, tokenizer, 48)
        else:
            kind: Kind = "preferences" if verb in _PAIRS else "conversations"
            rows: list[Row] = [_pair(i) if verb in _PAIRS else _chat(i) for i in range(60)]
            data = examples_of(rows, "", tokenizer, 47, kind, 0.2, [])
        (folder / "run").mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json"):
            (folder / "run" / name).write_text("{}")
        checkpoints = Checkpoints(folder / "run" / "checkpoints")
        task, machine = new_task(data, config, initial, others), choose(config.machine)
        spec = AdapterSpec(2) if own.get("adapter") else None
        return Trainer(initial, task, config.training, machine, checkpoints, spec)

    return make


def _chat(i: int) -> Conversation:
    return Conversation((Message("user", f"ask {i}"), Message("assistant", "word " * (i % 5) + str(i))), "")


def _pair(i: int) -> Preference:
    chosen, rejected = (Message("assistant", text) for text in ("word " * (i % 5) + str(i), "a" * (i % 7 + 1)))
    return Preference((Message("user", f"ask {i}"),), (chosen,), (rejected,), "")


def gradient(trainer: Trainer, accumulate: int) -> torch.Tensor:
    """That of a step after some steps that moved the model away from its parent."""
    trainer.task.place(trainer.machine)
    moved = torch.Generator().manual_seed(3)
    learner = trainer.learner
    for parameter in learner.trained.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=moved)
    if learner.adapter:
        learner.adapter.merge()
    batch = trainer.task.batch(3, learner.model)
    parts = micro_batches(batch, accumulate, trainer.task.weight, seed=1, step=3, stopped=lambda: False)
    learner.grad_clip = math.inf
    learner.gradients(parts, accumulate, trainer.machine)
    parameters = list(learner.trained.parameters())
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_the_same_however_the_step_is_cut(method: str, make: Callable[..., Trainer]) -> None:
    """Ragged replies, in 1, 2, 4 or 8 micro-batches, down to single pairs and rows."""
    whole = gradient(make(method, batch_size=8, accumulate=1), 1)
    assert whole.norm() > 0
    for accumulate in (2, 4, 8):
        cut = gradient(make(method, batch_size=8 // accumulate, accumulate=accumulate), accumulate)
        assert float((cut - whole).norm() / whole.norm()) < 1e-6


def test_the_baseline_of_kto_is_that_of_the_whole_step(make: Callable[..., Trainer]) -> None:
    """The mean over all pairs of the step: how much likelier the chosen reply of the next pair has become."""
    trainer = make("dpo, kto")
    task: Any = trainer.task
    task.place(trainer.machine)
    model = trainer.learner.model
    read = task.batch(2, model)
    torch.nn.functional.cross_entropy(model(read.tokens).flatten(0, 1), read.targets.flatten()).backward()
    for parameter in model.parameters():  # all replies become likelier
        assert parameter.grad is not None
        parameter.data -= 0.1 * parameter.grad
    batch, pairs = task.batch(2, model), task.sampler.rows(2)
    ratios = []
    for pair in pairs.tolist():
        ids, learned = task.train[2 * pair]
        other, replied = task.train[2 * ((pair + 1) % (len(task.train) // 2))]
        start = int(learned.argmax())
        tokens = torch.tensor([*ids[:start].tolist(), *other[int(replied.argmax()) :].tolist()])[None]
        models = (model.eval(), trainer.learner.initial.build().eval())
        after, before = (each(tokens[:, :-1]).log_softmax(-1) for each in models)
        gains = (after - before).gather(-1, tokens[:, 1:, None])[0, start - 1 :, 0]
        mask = torch.from_numpy(replied[int(replied.argmax()) :])
        ratios.append(float(gains[mask].sum().detach()))
    expected = sum(ratios) / len(ratios)
    assert expected > 0.01
    torch.testing.assert_close(batch.extras["kl"], torch.full((16,), expected), rtol=1e-4, atol=1e-5)


def run(trainer: Trainer) -> list[Event]:
    events: list[Event] = []
    trainer.subscribers.append(events.append)
    trainer.compile()
    trainer.run()
    return events


def of(kind: type[Event], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    snapshot = trainer.learner.snapshot(trainer.state)
    return {name: tensor.clone() for name, tensor in {**snapshot.weights, **snapshot.training}.items()}


def test_a_step_without_signal_counts_and_changes_nothing(
    make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 10 on, all replies earn the same: neither weights nor moments change, and nothing is computed."""
    before: dict[int, dict[str, torch.Tensor]] = {}
    trainer = make("grpo, dr_grpo", steps=16)
    earned, forward = TaskPrompts.rewards, trainer.learner.forward
    passes: list[int] = []
    rewards = lambda *parts: earned(*parts) if trainer.state.step < 10 else [1.0] * len(parts[1])  # noqa: E731
    monkeypatch.setattr(TaskPrompts, "rewards", lambda self, prompts, replies: rewards(self, prompts, replies))
    trainer.learner.forward = lambda *parts: passes.append(trainer.state.step) or forward(*parts)  # type: ignore[func-returns-value]
    trainer.subscribers.append(
        lambda event: before.update({event.step: tensors(trainer)}) if isinstance(event, Step) else None
    )
    steps = of(Step, run(trainer))
    assert [event.step for event in steps] == list(range(1, 17))
    assert passes == list(range(10))
    assert [event.figures["signal"] for event in steps] == [1.0] * 10 + [0.0] * 6
    assert "entropy" in steps[9].figures and "entropy" not in steps[10].figures  # it was not measured
    assert all(torch.equal(before[16][name], tensor) for name, tensor in before[10].items())
    assert not all(torch.equal(before[10][name], tensor) for name, tensor in before[9].items())


def test_a_step_without_signal_is_still_held_near_the_parent(
    make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskPrompts, "rewards", lambda self, prompts, replies: [1.0] * len(replies))
    assert gradient(make("grpo, near the parent"), 1).norm() > 0
    assert gradient(make("grpo, dapo"), 1).norm() == 0


@pytest.mark.parametrize("method", ["dpo, sigmoid", "dpo, ipo", "reward", "grpo, dr_grpo", "distill"])
def test_healthy_training_has_no_spikes(method: str, make: Callable[..., Trainer]) -> None:
    """Losses that are near zero, negative, or many times the usual ones, as at a high learning rate."""
    trainer = make(method, steps=60, eval_every=100, checkpoint_every=100, learning_rate=3e-2)
    events = run(trainer)
    assert len(of(Step, events)) == 60
    assert not of(Skipped, events) and not of(RolledBack, events)


@pytest.mark.parametrize("method", ["sft", "sft, adapter", "dpo, kto", "reward", "grpo, dapo", "distill, own replies"])
def test_three_losses_that_are_no_numbers_lead_back(method: str, make: Callable[..., Trainer]) -> None:
    trainer = make(method, checkpoint_every=6)
    loss, made = trainer.task.loss, list[int]()

    def faulty(forward: Any, batch: Any) -> Loss:
        found = loss(forward, batch)
        step = trainer.state.step + 1
        made.extend([step] * trainer.learner.model.training)
        return Loss(found.value * (math.nan if step in (14, 15, 16) else 1), found.figures)

    trainer.task.loss = faulty  # type: ignore[method-assign]
    events = run(trainer)
    (back,) = of(RolledBack, events)
    assert (back.step, back.to, back.rate_share) == (16, 12, 0.5)
    assert made == [*range(1, 17), 13, *range(17, 25)]
    assert trainer.state.step == 24


def test_weights_that_are_no_numbers_are_found_though_replies_are_drawn_with_them(make: Callable[..., Trainer]) -> None:
    trainer = make("grpo, dr_grpo", checkpoint_every=6)
    spoiled: list[int] = []

    def spoil(event: Event) -> None:
        if isinstance(event, Step) and event.step == 14 and not spoiled:
            spoiled.append(1)
            trainer.learner.model.get_parameter("ln_f.weight").data[3] = math.nan

    trainer.subscribers.append(spoil)
    (back,) = of(RolledBack, run(trainer))
    assert back.to == 12
    assert all(bool(p.isfinite().all()) for p in trainer.learner.model.parameters())


def test_a_method_that_never_recovers_says_so(make: Callable[..., Trainer]) -> None:
    trainer = make("dpo, sigmoid")
    trainer.task.loss = lambda forward, batch: Loss(forward(batch.tokens).sum() * math.nan)  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match=r"start a new run with --learning-rate 0\.001"):
        run(trainer)


@pytest.mark.parametrize("method", ["sft, packed", "dpo, kto", "reward", "grpo, groups of 5", "distill"])
def test_after_running_out_of_memory_a_step_is_the_same(
    method: str, make: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in the fifth step: a quarter of the pairs or replies at once, none of which is lost or parted."""
    whole, calls, seen = of(Step, run(make(method, tmp_path / "whole", steps=8))), [0], list[int]()
    trainer, backward = make(method, tmp_path / "cut", steps=8), torch.Tensor.backward
    loss = trainer.task.loss

    def counted(forward: Any, batch: Any) -> Loss:
        seen.extend([len(batch)] * trainer.learner.model.training)
        return loss(forward, batch)

    def failing(self: torch.Tensor) -> None:
        calls[0] += 1
        if calls[0] in (5, 6):
            raise MemoryError
        backward(self)

    trainer.task.loss = counted  # type: ignore[method-assign]
    monkeypatch.setattr(torch.Tensor, "backward", failing)
    events = run(trainer)
    assert [(event.batch_size, event.accumulate) for event in of(OutOfMemory, events)] == [(4, 2), (2, 4)]
    steps = of(Step, events)
    assert [event.loss for event in steps] == pytest.approx([event.loss for event in whole], rel=1e-3, abs=1e-4)
    assert [event.grad_norm for event in steps] == pytest.approx([event.grad_norm for event in whole], rel=1e-2)
    rows = seen[0]
    assert sum(seen[6 : 6 + 4]) == rows  # the fifth step, at the third try
    if method.startswith(_PAIRS):
        assert all(n % 2 == 0 for n in seen)


def test_the_smallest_part_of_a_step_is_one_pair(make: Callable[..., Trainer]) -> None:
    trainer = make("reward", batch_size=3, accumulate=1)
    smaller = halved(trainer.settings)
    assert smaller is not None and (smaller.batch_size, smaller.accumulate) == (1, 3) and halved(smaller) is None
    batch = trainer.task.batch(0, trainer.learner.model)
    assert [len(part) for part in batch.split(smaller.accumulate)] == [2, 2, 2]
