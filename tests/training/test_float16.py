"""float16: the loss is scaled so that small gradients survive, and a step whose gradients overflow changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import groundling
from groundling.config import CorpusSettings, MachineSettings, ModelSettings, TrainingSettings
from groundling.data.batches import Batches
from groundling.data.corpus import prepare
from groundling.data.sources import find_source
from groundling.machine import Machine, choose
from groundling.model.gpt import GPT
from groundling.training import fit
from groundling.training import step as step_module
from groundling.training.checkpoints import TrainState
from groundling.training.objective import next_token
from groundling.training.optimizer import new_optimizer

SETTINGS = TrainingSettings(steps=10, batch_size=4, warmup_steps=0)


@pytest.fixture
def parts(text_file: Path) -> tuple[GPT, Batches, Machine]:
    text = prepare(find_source(text_file), CorpusSettings())
    torch.manual_seed(0)
    model = GPT(ModelSettings(block_size=32, n_layer=1, n_head=2, n_embd=32), text.tokenizer.vocab_size)
    return model, Batches(text.train, 32, 4, 1, 1), choose(MachineSettings(device="cpu", dtype="float16"))


def step(parts: tuple[GPT, Batches, Machine], state: TrainState) -> tuple[float, float]:
    model, batches, machine = parts
    optimizer = new_optimizer(model, SETTINGS)
    outcome, cause = fit.train_step(model, model, next_token, batches, optimizer, state, SETTINGS, machine)
    assert cause == ""
    loss, norm = outcome.tolist()
    return loss, norm


def test_an_overflow_leaves_the_weights_and_halves_the_scale(parts: tuple[GPT, Batches, Machine]) -> None:
    before = [p.detach().clone() for p in parts[0].parameters()]
    state = TrainState(loss_scale=2.0**60)
    loss, norm = step(parts, state)
    assert 3 < loss < 6
    assert not norm < float("inf")
    assert state.loss_scale == 2.0**59
    assert all(torch.equal(a, b) for a, b in zip(before, parts[0].parameters(), strict=True))


def test_the_scale_does_not_show_in_the_step(parts: tuple[GPT, Batches, Machine]) -> None:
    before = [p.detach().clone() for p in parts[0].parameters()]
    weights, norms = [], []
    for scale in (2.0**8, 2.0**12):
        with torch.no_grad():
            for p, start in zip(parts[0].parameters(), before, strict=True):
                p.copy_(start)
        norms.append(step(parts, TrainState(loss_scale=scale))[1])
        weights.append([p.detach().clone() for p in parts[0].parameters()])
    assert norms[0] == pytest.approx(norms[1], rel=0.01)
    assert not all(torch.equal(a, b) for a, b in zip(before, weights[0], strict=True))


def test_the_scale_grows_again(parts: tuple[GPT, Batches, Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "_STEPS_BEFORE_SCALING_UP", 3)
    state = TrainState(loss_scale=256.0)
    for _ in range(6):
        step(parts, state)
    assert state.loss_scale == 1024.0


def test_what_is_wrong_beyond_the_scale_is_no_matter_of_scaling(parts: tuple[GPT, Batches, Machine]) -> None:
    model, batches, machine = parts
    state, optimizer = TrainState(loss_scale=4.0), new_optimizer(model, SETTINGS)
    with torch.no_grad():
        model.wte.weight.fill_(float("nan"))
    _, cause = fit.train_step(model, model, next_token, batches, optimizer, state, SETTINGS, machine)
    assert cause == "the loss is nan"
    assert state.loss_scale == 4.0


def test_a_run_in_float16_learns_and_continues(text_file: Path, tiny: dict[str, Any]) -> None:
    run = groundling.train(text_file, on_event=lambda _: None, **tiny | {"dtype": "float16"})
    assert run.result is not None
    assert run.result["best_validation_loss"] < 3.5
    longer = groundling.resume(run, steps=44, on_event=lambda _: None)
    assert longer.result is not None
    assert longer.result["step"] == 44
