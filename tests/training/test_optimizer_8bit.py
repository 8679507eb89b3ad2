"""Optimizer state in 8 bits: how exact it is, that steps stay close to those in float32, and what it takes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from groundling.config import PRESETS, Config, ModelSettings, TrainingSettings
from groundling.model.describe import block_columns, bytes_saved
from groundling.model.gpt import GPT
from groundling.parallel.divide import check_divisible
from groundling.training.optimizer import Optimizers, new_optimizer
from groundling.training.optimizer_8bit import AdamW8bit, dequantize, levels, quantize

SMALL = ModelSettings(block_size=32, n_layer=1, n_head=2, n_embd=64)
BITS8 = TrainingSettings(optimizer_bits=8)
MUON8 = TrainingSettings(optimizer="muon", optimizer_bits=8)


def model_of(settings: ModelSettings = SMALL) -> GPT:
    torch.manual_seed(0)
    return GPT(settings, 96)


def set_gradients(model: GPT, seed: int) -> None:
    """Gradients whose columns differ by orders of magnitude. Most rows have none, as those of rare tokens."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=random)
        if parameter.dim() == 2:
            gradient *= torch.logspace(-4, 0, parameter.size(1))
            gradient *= torch.rand((len(gradient), 1), generator=random) < 0.3
        parameter.grad = gradient


def trained(settings: TrainingSettings, steps: int = 20) -> tuple[GPT, Optimizers]:
    model = model_of()
    optimizer = new_optimizer(model, settings)
    for seed in range(steps):
        set_gradients(model, seed)
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_the_nearest_levels(signed: bool) -> None:
    numbers = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).exp()
    numbers[0] = 0.0
    if signed:
        numbers[::2] *= -1
    assert signed or levels(signed, torch.device("cpu")).min() > 0
    codes, scales = quantize(numbers, 48, signed)
    assert codes.dtype == torch.uint8 and scales.shape == (64, 2)
    found, blocks = dequantize(codes, scales, signed), numbers.unflatten(1, (-1, 48))
    nearest = (blocks[..., None] / scales[..., None, None].clamp(min=1e-9) - levels(signed, torch.device("cpu"))).abs()
    error = (found.unflatten(1, (-1, 48)) - blocks).abs()
    # Half precision has 11 bits, so next to the middle between two levels, the other one may be chosen.
    assert (error <= (nearest.amin(-1) + 2**-11) * scales[..., None]).all()
    assert (error <= 0.0076 * scales[..., None]).all()
    assert torch.equal(found.unflatten(1, (-1, 48)).abs().amax(2), blocks.abs().amax(2))  # exact
    assert torch.equal(quantize(found, 48, signed)[0][1:], codes[1:])


def test_any_byte_is_a_code_and_nan_does_no_harm() -> None:
    assert dequantize(torch.arange(256).to(torch.uint8)[None], torch.ones(1, 1), signed=True).isfinite().all()
    codes, scales = quantize(torch.full((1, 32), torch.nan), 32, signed=False)
    assert codes.shape == (1, 32) and scales.isnan().all()


def test_steps_are_close_to_those_of_adamw_in_float32() -> None:
    """Also where a number of the second moment is far below the largest of its block, and its gradients become 0."""
    ours, theirs, start = trained(BITS8)[0], trained(TrainingSettings())[0], model_of()
    for name, weight in theirs.named_parameters():
        moved = weight - start.get_parameter(name)
        difference = ours.get_parameter(name) - weight
        assert difference.norm() < 0.12 * moved.norm(), name
        assert difference.abs().max() < moved.abs().max(), name


def test_steps_are_close_to_those_of_muon_in_float32() -> None:
    ours, theirs, start = trained(MUON8)[0], trained(dataclasses.replace(MUON8, optimizer_bits=32))[0], model_of()
    for name, weight in theirs.named_parameters():
        moved = weight - start.get_parameter(name)
        assert (ours.get_parameter(name) - weight).norm() < 0.1 * moved.norm(), name


@pytest.mark.parametrize(("settings", "at_most"), [(BITS8, 2.45), (MUON8, 1.6)])
def test_the_state_takes_a_quarter_of_the_memory(settings: TrainingSettings, at_most: float) -> None:
    model, optimizer = trained(settings, steps=1)
    state = optimizer.state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == optimizer.state_shapes()
    assert sum(x.nbytes for x in state.values()) < at_most * sum(p.numel() for p in model.parameters())
    if settings is BITS8:
        whole = sum(x.nbytes for x in trained(TrainingSettings(), steps=1)[1].state_dict().values())
        assert whole - sum(x.nbytes for x in state.values()) == bytes_saved(SMALL, 96, 8)
    small = [name for name, p in model.named_parameters() if not block_columns(tuple(p.shape))]
    assert "ln_f.weight" in small and "wpe.weight" in small
    assert all(x.dtype == torch.float32 for name, x in state.items() if name.partition("/")[0] in small)


def test_gpt2_has_two_bytes_for_each_weight() -> None:
    for name in ("gpt2", "gpt2-xl"):
        model = PRESETS[name].model
        with torch.device("meta"):
            numbers = sum(p.numel() for p in GPT(model, 50_257).parameters())
        assert 8 - bytes_saved(model, 50_257, 8) / numbers == pytest.approx(2.04, abs=0.02)


@pytest.mark.parametrize("shape", [(64,), (1 << 20,), (63, 64), (4096, 8), (64, 257)])
def test_short_blocks_and_small_tensors_stay_in_float32(shape: tuple[int, ...]) -> None:
    assert block_columns(shape) == 0


@pytest.mark.parametrize("settings", [BITS8, MUON8], ids=["adamw", "muon"])
def test_a_skipped_step_changes_nothing(settings: TrainingSettings) -> None:
    model, optimizer = trained(settings, steps=3)
    weights = copy.deepcopy(model.state_dict())
    state = {name: x.clone() for name, x in optimizer.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.step(torch.ones(()))
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
    assert all(torch.equal(x, state[name]) for name, x in optimizer.state_dict().items())
    set_gradients(model, 3)
    optimizer.step(torch.zeros(()))
    expected, _ = trained(settings, steps=4)
    assert all(torch.equal(x, expected.state_dict()[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("settings", [BITS8, MUON8], ids=["adamw", "muon"])
def test_saved_state_continues_as_if_it_had_never_stopped(settings: TrainingSettings) -> None:
    model, optimizer = trained(settings, steps=3)
    twin = copy.deepcopy(model)
    other = new_optimizer(twin, settings)
    other.load_state_dict({name: x.clone() for name, x in optimizer.state_dict().items()})
    for each, its in ((model, optimizer), (twin, other)):
        set_gradients(each, 3)
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ValueError, match="does not belong to this model"):
        new_optimizer(twin, TrainingSettings()).load_state_dict(optimizer.state_dict())


def test_rows_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = trained(BITS8, steps=2)
    monkeypatch.setattr("groundling.training.optimizer_8bit._AT_ONCE_ON_CPU", 1000)
    parts, _ = trained(BITS8, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_matrices_decay() -> None:
    model = model_of()
    optimizer = new_optimizer(model, dataclasses.replace(BITS8, weight_decay=0.3))
    assert any(isinstance(each, AdamW8bit) for each in optimizer.optimizers)
    before = model.wte.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.wte.weight.detach(), before * (1 - 1e-3 * 0.3))


@pytest.mark.parametrize(("n_embd", "ways", "fits"), [(512, 2, True), (256, 2, False), (1024, 4, True), (768, 3, True)])
def test_blocks_are_not_divided_among_ranks(n_embd: int, ways: int, fits: bool) -> None:
    settings: dict[str, Any] = {"n_embd": n_embd, "n_head": 12 if ways == 3 else 8, "tensor_parallel": ways}
    config = Config.build("text", "nano", **settings, optimizer_bits=8)
    if fits:
        check_divisible(config)
        return
    with pytest.raises(ValueError, match="--optimizer-bits 32"):
        check_divisible(config)
    check_divisible(Config.build("text", "nano", **settings))
