"""An adapter in the training loop: only it is trained, the model holds the merged weights, and a resume is exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from groundling.config import Config
from groundling.data.batches import Batch
from groundling.machine import choose
from groundling.model.adapter import AdapterKind, AdapterSpec
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.training.checkpoints import Checkpoints
from groundling.training.events import Step
from groundling.training.task import Score, Task
from groundling.training.trainer import Trainer

SETTINGS: dict[str, Any] = {
    "steps": 6, "batch_size": 4, "accumulate": 2, "warmup_steps": 0, "block_size": 8, "n_layer": 2, "n_head": 2,
    "n_embd": 16, "learning_rate": 1e-2, "dropout": 0.1, "eval_every": 3, "checkpoint_every": 3, "log_every": 1,
    "optimizer": "muon", "weight_average": 0.1, "weight_decay": 0.1, "device": "cpu", "dtype": "float32",
    "keep_checkpoints": 0, "compile": "on",
}  # fmt: skip
SPEC = AdapterSpec(2, new_rows=3)


class Counting(Task):
    """Each token is followed by the next number."""

    def batch(self, step: int, model: GPT) -> Batch:
        tokens = torch.from_numpy(np.random.default_rng([1, step]).integers(20, size=(8, 8)))
        return Batch(tokens, (tokens + 1) % 20)

    def evaluate(self, model: GPT, *_: Any) -> Score:
        with torch.inference_mode():
            return Score(float(self.loss(model.eval(), self.batch(-1 % 2**32, model)).value))


def new_trainer(folder: Path, spec: AdapterSpec | None = SPEC, seed: int = 0, **settings: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    config = Config.build("", "nano", **SETTINGS | settings)
    initial = InitialModel(config.model, 20, seed)
    machine = choose(config.machine)
    return Trainer(initial, Counting(), config.training, machine, Checkpoints(folder / "checkpoints"), spec)


def trained(folder: Path, stopped: Callable[[Trainer], bool] = lambda trainer: False, **options: Any) -> Trainer:
    trainer = new_trainer(folder, **options)
    newest = trainer.checkpoints.newest(print)
    if newest:
        trainer.resume(newest)
    trainer.compile()
    trainer.losses = []  # type: ignore[attr-defined]
    trainer.subscribers.append(
        lambda event: trainer.losses.append(event.loss) if isinstance(event, Step) else None  # type: ignore[attr-defined]
    )
    trainer.run(lambda: stopped(trainer))
    return trainer


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    return load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "optimizer.safetensors")


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_a_resumed_adapter_is_the_same_to_the_bit(kind: AdapterKind, tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, kind=kind)
    whole = trained(tmp_path / "whole", spec=spec)
    first = trained(tmp_path / "parts", lambda trainer: trainer.state.step == 2, spec=spec)
    assert first.state.step == 2
    rest = trained(tmp_path / "parts", spec=spec)
    assert first.losses + rest.losses == whole.losses and len(whole.losses) == 6  # type: ignore[attr-defined]
    for step in (3, 6):
        ours, expected = tensors(tmp_path / "parts", step), tensors(tmp_path / "whole", step)
        assert ours.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []


def test_only_the_adapter_is_trained_and_the_model_holds_the_merged_weights(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", steps=40)
    learner = trainer.learner
    assert learner.adapter is not None
    losses = trainer.losses  # type: ignore[attr-defined]
    assert losses[-1] < losses[0] - 0.1
    saved, start = tensors(tmp_path / "run", 40), trainer.learner.initial.build().state_dict()
    changed = {name for name, tensor in start.items() if not torch.equal(saved[name], tensor)}
    layers = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    assert changed == {"wte.weight"} | {f"h.{i}.{layer}.weight" for i in (0, 1) for layer in layers}
    assert torch.equal(saved["wte.weight"][:-3], start["wte.weight"][:-3])
    model, tokens = learner.model.eval(), torch.arange(8)[None]
    assert torch.equal(model(tokens), learner.adapter(tokens))
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    names = [name for name, _ in learner.adapter.named_parameters()]
    moments = {f"{name}/{key}" for name in names for key in ("exp_avg", "exp_avg_sq", "step")}
    assert saved.keys() - start.keys() == moments | {f"adapter/{name}" for name in names}


def test_an_adapter_is_neither_decayed_nor_averaged_nor_compiled(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run")
    assert [type(optimizer) for optimizer in trainer.learner.optimizer.optimizers] == [torch.optim.AdamW]
    assert {group["weight_decay"] for group in trainer.learner.optimizer.groups} == {0.0}
    assert not trainer.learner.average.state_dict()
    assert trainer.machine.compile == "off"
    assert trainer.learner.forward is trainer.learner.adapter


def test_the_gradient_is_clipped_over_the_adapter(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path / "run", grad_clip=1e-3)
    learner = trainer.learner
    figures = learner.gradients([(trainer.task.batch(0, learner.model), 1.0)], 1, trainer.machine)
    assert learner.adapter is not None and float(figures["grad_norm"]) > 1e-3
    gradients = [p.grad.flatten() for p in learner.adapter.parameters() if p.grad is not None]
    torch.testing.assert_close(torch.cat(gradients).norm(), torch.tensor(1e-3), rtol=1e-3, atol=0)
    learner.zero_grad()
    assert all(p.grad is None for p in learner.adapter.parameters())


def test_a_step_that_the_device_skips_changes_nothing(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path / "run")
    learner = trainer.learner
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    for found, changes in ((1.0, False), (0.0, True)):
        learner.gradients([(trainer.task.batch(0, learner.model), 1.0)], 1, trainer.machine)
        learner.apply(0, torch.tensor(found))
        after = learner.model.state_dict()
        assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items()) == changes


def test_a_reset_returns_to_the_start(tmp_path: Path) -> None:
    trainer, fresh = trained(tmp_path / "run"), new_trainer(tmp_path / "fresh")
    trainer.learner.reset()
    for ours, expected in ((trainer.learner.model, fresh.learner.model),
                           (trainer.learner.adapter, fresh.learner.adapter)):  # fmt: skip
        assert ours is not None and expected is not None
        there = expected.state_dict()
        assert all(torch.equal(tensor, there[name]) for name, tensor in ours.state_dict().items())
    assert trainer.learner.optimizer.state_dict() == {}


def test_an_adapter_of_other_initial_weights_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    other = new_trainer(tmp_path / "run", seed=5)
    with pytest.raises(ValueError, match="does not belong to the initial weights of this run"):
        other.resume(tmp_path / "run" / "checkpoints" / "step-000006")


def test_a_checkpoint_is_as_large_as_was_said(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run")
    assert trainer.learner.snapshot(trainer.state).size == trainer.learner.checkpoint_size
