"""float16: the loss is scaled so that small gradients survive, and a step whose gradients overflow changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import groundling
from groundling.config import Config, CorpusSettings
from groundling.data.corpus import prepare
from groundling.data.sources import find_source
from groundling.machine import choose
from groundling.model.initial import InitialModel
from groundling.tasks import new_task
from groundling.training import step as step_module
from groundling.training.checkpoints import Checkpoints
from groundling.training.step import LossScaler
from groundling.training.trainer import Trainer

SETTINGS: dict[str, Any] = {
    "steps": 10, "batch_size": 4, "warmup_steps": 0, "block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 32,
    "optimizer": "adamw", "weight_average": 0.0, "device": "cpu", "dtype": "float16",
}  # fmt: skip


@pytest.fixture
def trainer(text_file: Path, tmp_path: Path) -> Trainer:
    text = prepare(find_source(text_file), CorpusSettings())
    config = Config.build(str(text_file), "nano", **SETTINGS)
    initial = InitialModel(config.model, text.tokenizer.vocab_size, seed=0)
    task = new_task(text, config, initial)
    return Trainer(initial, task, config.training, choose(config.machine), Checkpoints(tmp_path / "checkpoints"))


def step(trainer: Trainer, scale: float) -> tuple[float, float]:
    """Loss and gradient norm of the first step at this loss scale."""
    trainer.state.scaler = LossScaler(loss_scale=scale)
    return again(trainer)


def again(trainer: Trainer) -> tuple[float, float]:
    figures, cause = trainer._step(trainer.task.batch(0, trainer.learner.model), interruptible=False)
    assert cause == ""
    return float(figures["loss"]), float(figures["grad_norm"])


def test_an_overflow_leaves_the_weights_and_halves_the_scale(trainer: Trainer) -> None:
    before = [p.detach().clone() for p in trainer.learner.model.parameters()]
    loss, norm = step(trainer, 2.0**60)
    assert 3 < loss < 6
    assert not norm < float("inf")
    assert trainer.state.scaler.loss_scale == 2.0**59
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.learner.model.parameters(), strict=True))


def test_the_scale_does_not_show_in_the_step(trainer: Trainer) -> None:
    before = [p.detach().clone() for p in trainer.learner.model.parameters()]
    weights, norms = [], []
    for scale in (2.0**8, 2.0**12):
        trainer.learner.reset()
        norms.append(step(trainer, scale)[1])
        weights.append([p.detach().clone() for p in trainer.learner.model.parameters()])
    assert norms[0] == pytest.approx(norms[1], rel=0.01)
    assert not all(torch.equal(a, b) for a, b in zip(before, weights[0], strict=True))


def test_the_scale_grows_again(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "_STEPS_BEFORE_SCALING_UP", 3)
    step(trainer, 256.0)
    for _ in range(5):
        again(trainer)
    assert trainer.state.scaler.loss_scale == 1024.0


def test_the_scale_grows_again_from_the_lowest_too(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "_STEPS_BEFORE_SCALING_UP", 3)
    step(trainer, 1.0)
    for _ in range(5):
        again(trainer)
    assert trainer.state.scaler.loss_scale == 4.0


def test_what_is_wrong_beyond_the_scale_is_no_matter_of_scaling(trainer: Trainer) -> None:
    trainer.state.scaler = LossScaler(loss_scale=4.0)
    with torch.no_grad():
        trainer.learner.model.wte.weight.fill_(float("nan"))
    _, cause = trainer._step(trainer.task.batch(0, trainer.learner.model), interruptible=False)
    assert cause == "loss is NaN"
    assert trainer.state.scaler.loss_scale == 4.0


def test_a_run_in_float16_learns_and_continues(text_file: Path, tiny: dict[str, Any]) -> None:
    run = groundling.train(text_file, on_event=lambda _: None, **tiny | {"dtype": "float16"})
    assert run.result is not None
    assert run.result["best_validation_loss"] < 3.5
    longer = groundling.resume(run, steps=44, on_event=lambda _: None)
    assert longer.result is not None
    assert longer.result["step"] == 44
