"""torch.compile: used where it works and pays, never in the way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from groundling.config import MachineSettings, ModelSettings
from groundling.machine import Machine, choose
from groundling.model.gpt import GPT
from groundling.training import compiling
from groundling.training.compiling import Trial, choose_forward
from groundling.training.objective import next_token

FAST = Trial(plain=1.0, compiled=0.5, seconds=10.0)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    shape = {"block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 32}
    return GPT(ModelSettings(norm="rmsnorm", position="rope", mlp="swiglu", **shape), 20)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(20, (4, 33), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def machine(compile: str) -> Machine:
    return choose(MachineSettings(device="cpu", dtype="float32", compile=compile))  # type: ignore[arg-type]


def test_off_is_the_model_itself(model: GPT, batch: Any) -> None:
    assert choose_forward(model, next_token, batch, machine("off"), 1e9) == (model, False, "")


@pytest.mark.usefixtures("compiler")
def test_on_computes_the_same_and_leaves_no_trace(model: GPT, batch: Any) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    forward, is_compiled, reason = choose_forward(model, next_token, batch, machine("on"), 1)
    assert is_compiled
    assert reason.startswith("compiled in")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    gradients = []
    for function in (model, forward):
        next_token(function, batch).backward()
        gradients.append([p.grad for p in model.parameters()])
        model.zero_grad(set_to_none=True)
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_odd_shapes_compile_too(batch: Any) -> None:
    shape = {"block_size": 77, "n_layer": 1, "n_head": 3, "n_embd": 30, "dropout": 0.1}
    model = GPT(ModelSettings(norm="rmsnorm", position="rope", mlp="swiglu", **shape), 21)
    tokens = torch.randint(21, (3, 78), generator=torch.Generator().manual_seed(1))
    low = dataclasses.replace(machine("on"), dtype=torch.bfloat16)
    forward, is_compiled, _ = choose_forward(model, next_token, (tokens[:, :-1], tokens[:, 1:]), low, 1)
    assert is_compiled
    for _ in range(20):
        with low.autocast():
            loss = next_token(forward, (tokens[:, :-1], tokens[:, 1:]))
        loss.backward()
        assert bool(loss.isfinite())


def test_a_short_run_is_not_worth_it(model: GPT, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    monkeypatch.setattr(torch, "compile", None)  # calling it would fail
    forward, is_compiled, reason = choose_forward(model, next_token, batch, machine("auto"), 20)
    assert (forward, is_compiled) == (model, False)
    assert "would not pay for itself" in reason


def test_no_compiler_means_not_compiled(model: GPT, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    forward, is_compiled, reason = choose_forward(model, next_token, batch, machine("auto"), 1e9)
    assert (forward, is_compiled) == (model, False)
    assert reason == "not compiled, since no compiler is here"


@pytest.mark.parametrize(
    ("trial", "used"),
    [(FAST, True), (Trial(1.0, 0.99, 10.0), False), (Trial(1.0, None, 3.0, "g++ crashed"), False)],
)
def test_auto_goes_by_what_was_measured_and_remembers_it(
    model: GPT, batch: Any, monkeypatch: pytest.MonkeyPatch, trial: Trial, used: bool
) -> None:
    tried = []
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    monkeypatch.setattr(compiling, "_try", lambda *_: tried.append(1) or trial)
    for _ in range(2):
        forward, is_compiled, _ = choose_forward(model, next_token, batch, machine("auto"), 1e9)
        assert is_compiled == used
        assert (forward is model) != used
    assert len(tried) == (2 if used else 1)  # what did not help is not tried again


def test_another_shape_is_another_question(model: GPT, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiling._remember(compiling._memory(model, batch, machine("auto")), Trial(1.0, None, 3.0, "no"))
    assert compiling._recall(compiling._memory(model, batch, machine("auto"))) is not None
    assert compiling._recall(compiling._memory(model, tuple(part[:2] for part in batch), machine("auto"))) is None


def test_a_memory_that_cannot_be_read_is_no_memory(model: GPT, batch: Any) -> None:
    memory = compiling._memory(model, batch, machine("auto"))
    compiling._remember(memory, FAST)
    assert compiling._recall(memory) == FAST
    memory.write_text("{")
    assert compiling._recall(memory) is None
