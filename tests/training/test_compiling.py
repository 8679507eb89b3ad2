"""torch.compile: used where it works and pays, never in the way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from groundling.config import MachineSettings, ModelSettings
from groundling.data.batches import Batch
from groundling.machine import Machine, choose
from groundling.model.gpt import GPT
from groundling.training import compiling
from groundling.training.compiling import CompileTrial, Timing
from idle_task import IdleTask

FAST = Timing(plain=1.0, compiled=0.5, seconds=10.0)


def trial(model: GPT, batch: Batch, machine: Machine) -> CompileTrial:
    return CompileTrial(model, IdleTask(), batch, machine)


def next_token(forward: Any, batch: Batch) -> torch.Tensor:
    return IdleTask().loss(forward, batch).value


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    shape = {"block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 32}
    return GPT(ModelSettings(norm="rmsnorm", position="rope", mlp="swiglu", **shape), 20)


@pytest.fixture
def batch() -> Batch:
    tokens = torch.randint(20, (4, 33), generator=torch.Generator().manual_seed(1))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def machine(compile: str) -> Machine:
    return choose(MachineSettings(device="cpu", dtype="float32", compile=compile))  # type: ignore[arg-type]


def test_off_is_the_model_itself(model: GPT, batch: Any) -> None:
    assert trial(model, batch, machine("off")).choose(1e9) == (model, False, "")


@pytest.mark.usefixtures("compiler")
def test_on_computes_the_same_and_leaves_no_trace(model: GPT, batch: Any) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    forward, is_compiled, reason = trial(model, batch, machine("on")).choose(1)
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
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    forward, is_compiled, _ = trial(model, batch, low).choose(1)
    assert is_compiled
    for _ in range(20):
        with low.autocast():
            loss = next_token(forward, batch)
        loss.backward()
        assert bool(loss.isfinite())


def test_a_short_run_is_not_worth_it(model: GPT, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    monkeypatch.setattr(torch, "compile", None)  # calling it would fail
    forward, is_compiled, reason = trial(model, batch, machine("auto")).choose(20)
    assert (forward, is_compiled) == (model, False)
    assert "would not pay for itself" in reason


def test_no_compiler_means_not_compiled(model: GPT, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    forward, is_compiled, reason = trial(model, batch, machine("auto")).choose(1e9)
    assert (forward, is_compiled) == (model, False)
    assert reason == "not compiled: no C++ compiler found"


@pytest.mark.parametrize(
    ("timing", "used"),
    [(FAST, True), (Timing(1.0, 0.99, 10.0), False), (Timing(1.0, None, 3.0, "g++ crashed"), False)],
)
def test_auto_goes_by_what_was_measured_and_remembers_it(
    model: GPT, batch: Any, monkeypatch: pytest.MonkeyPatch, timing: Timing, used: bool
) -> None:
    tried = []
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)

    def tried_out(self: CompileTrial, compiled: Any) -> Timing:
        tried.append(1)
        self._remember(timing)
        return timing

    monkeypatch.setattr(CompileTrial, "_try", tried_out)
    for _ in range(2):
        forward, is_compiled, _ = trial(model, batch, machine("auto")).choose(1e9)
        assert is_compiled == used
        assert (forward is model) != used
    assert len(tried) == (2 if used else 1)  # what did not help is not tried again


def test_another_shape_is_another_question(model: GPT, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trial(model, batch, machine("auto"))._remember(Timing(1.0, None, 3.0, "no"))
    assert trial(model, batch, machine("auto"))._recall() is not None
    assert trial(model, batch.split(2)[0], machine("auto"))._recall() is None


def test_a_memory_that_cannot_be_read_is_no_memory(model: GPT, batch: Any) -> None:
    asked = trial(model, batch, machine("auto"))
    asked._remember(FAST)
    assert asked._recall() == FAST
    asked._cache_file.write_text("{")
    assert asked._recall() is None


def test_a_passing_fault_is_not_remembered(model: GPT, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk says nothing about the compiler, and memory that runs out is for the trainer to handle."""
    asked = trial(model, batch, machine("on"))
    seconds, faults = CompileTrial._seconds, list[Exception]()

    def failing(self: CompileTrial, forward: Any, times: int = 3) -> float:
        if forward is not model:
            raise faults.pop()
        return seconds(self, forward, times)

    monkeypatch.setattr(CompileTrial, "_seconds", failing)
    faults.append(MemoryError())
    with pytest.raises(MemoryError):
        asked.choose(1)
    for fault, remembered in ((OSError(28, "No space left on device"), False), (RuntimeError("g++ crashed"), True)):
        faults.append(fault)
        choice = asked.choose(1)
        assert not choice.compiled and "does not work here" in choice.reason
        assert (asked._recall() is not None) == remembered


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("threads", [2])
def test_a_compiled_step_repeats_to_the_bit_on_several_threads(threads: int, model: GPT) -> None:
    """The gradient of the embedding is a sum over many threads."""
    tokens = torch.randint(20, (64, 33), generator=torch.Generator().manual_seed(1))
    batch, before = Batch(tokens[:, :-1], tokens[:, 1:]), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        forward = trial(model, batch, machine("on")).choose(1).forward
        gradients = []
        for _ in range(5):
            next_token(forward, batch).backward()
            gradients.append([p.grad for p in model.parameters()])
            model.zero_grad(set_to_none=True)
    finally:
        torch.set_num_threads(before)
    for again in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], again, strict=True))
