"""Parameter groups, and the optimizer's state as named tensors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from groundling.config import ModelSettings, TrainingSettings
from groundling.model.gpt import GPT
from groundling.training.average import WeightAverage
from groundling.training.optimizer import Optimizers, new_optimizer, orthogonalize


def model_of(n_embd: int = 16) -> GPT:
    torch.manual_seed(0)
    return GPT(ModelSettings(block_size=8, n_layer=2, n_head=2, n_embd=n_embd), 11)


def step(model: GPT, optimizer: Optimizers, seed: int, before: int = 0, average: WeightAverage | None = None) -> None:
    tokens = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(seed))
    model(tokens).square().mean().backward()
    optimizer.step()
    if average is not None:
        average.update(before)
    model.zero_grad()


def test_matrices_decay_and_vectors_do_not() -> None:
    model = model_of()
    optimizer = new_optimizer(model, TrainingSettings(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_vector = name.endswith("bias") or "ln_" in name
        assert decay[id(parameter)] == (0.0 if is_vector else 0.3), name


@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_saved_state_continues_as_if_it_had_never_stopped(kind: Any, share: float) -> None:
    settings = TrainingSettings(optimizer=kind)
    model = model_of()
    optimizer, average = new_optimizer(model, settings), WeightAverage(model, share)
    for seed in range(3):
        step(model, optimizer, seed, average=average)
    twin = model_of()
    with average.applied():
        twin.load_state_dict(model.state_dict())
    twin_optimizer, twin_average = new_optimizer(twin, settings), WeightAverage(twin, share)
    twin_optimizer.load_state_dict({k: v.clone() for k, v in optimizer.state_dict().items()})
    twin_average.load_state_dict({k: v.clone() for k, v in average.state_dict().items()})
    for seed in range(3, 6):
        step(model, optimizer, seed, average=average)
        step(twin, twin_optimizer, seed, average=twin_average)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert average.state_dict().keys() == average.state_shapes().keys()
    assert {k: tuple(v.shape) for k, v in optimizer.state_dict().items()} == optimizer.state_shapes()
    with average.applied(), twin_average.applied():
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_the_average_is_of_the_latest_share_of_all_steps() -> None:
    model, share = model_of(), 0.25
    optimizer, average = new_optimizer(model, TrainingSettings(optimizer="muon")), WeightAverage(model, share)
    history = []
    for n in range(40):
        step(model, optimizer, seed=n, before=n, average=average)
        history.append(model.wte.weight.detach().double().clone())
    # What each of the weights of 40 steps counts, by its own rate and those after it.
    rates = [1 / (1 + share * n) for n in range(40)]
    counts = [rate * math.prod(1 - later for later in rates[n + 1 :]) for n, rate in enumerate(rates)]
    assert sum(counts) == pytest.approx(1)
    assert sum(n * count for n, count in enumerate(counts)) == pytest.approx(39 / (1 + share), abs=1)
    expected = sum(count * weights for count, weights in zip(counts, history, strict=True))
    with average.applied():
        assert torch.allclose(model.wte.weight.double(), expected, atol=1e-6)
    assert torch.equal(model.wte.weight.double(), history[-1])


def test_without_an_average_the_model_is_what_was_trained() -> None:
    model = model_of()
    optimizer, average = new_optimizer(model, TrainingSettings()), WeightAverage(model, 0.0)
    step(model, optimizer, 0, average=average)
    weights = model.wte.weight.clone()
    with average.applied():
        assert torch.equal(model.wte.weight, weights)
    assert not average.state_dict()


def test_state_of_another_model_is_refused() -> None:
    model, other = model_of(16), model_of(32)
    optimizer = new_optimizer(model, TrainingSettings())
    step(model, optimizer, 0)
    with pytest.raises(ValueError, match="does not belong to this model"):
        new_optimizer(other, TrainingSettings()).load_state_dict(optimizer.state_dict())


# Muon.

MODERN = ModelSettings(block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, norm="rmsnorm", position="rope",
                       mlp="swiglu")  # fmt: skip


def plain_muon(
    parameter: torch.Tensor, gradient: torch.Tensor, momentum: torch.Tensor, lr: float, decay: float
) -> None:
    """One matrix, written as plainly as can be, in float64."""
    momentum.mul_(0.95).add_(gradient, alpha=0.05)
    x = gradient * 0.05 + momentum * 0.95
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        A = x @ x.T
        x = 3.4445 * x + (-4.7750 * A + 2.0315 * A @ A) @ x
    x = x.T if tall else x
    shrinks = parameter.sign() == x.sign()
    parameter -= lr * decay * parameter * shrinks + lr * max(1, parameter.size(0) / parameter.size(1)) ** 0.5 * x


def test_muon_does_what_the_plain_reference_does() -> None:
    torch.manual_seed(0)
    model = GPT(MODERN, 11)
    settings = TrainingSettings(optimizer="muon", matrix_learning_rate=0.03, weight_decay=2.0)
    optimizer = new_optimizer(model, settings)
    block = model.blocks[0]
    rows = {"c_attn": [16, 8, 8], "c_fc": [64, 64]}
    followed = {"c_attn": block.attn.c_attn, "c_proj": block.attn.c_proj, "c_fc": block.mlp.c_fc}
    ours = {
        (name, i): (part.detach().double().clone(), torch.zeros_like(part, dtype=torch.float64))
        for name, module in followed.items()
        for i, part in enumerate(module.weight.split(rows.get(name, [16])))
    }
    for seed in range(3):
        tokens = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(seed))
        model(tokens).square().mean().backward()
        for (name, i), (parameter, momentum) in ours.items():
            gradient = followed[name].weight.grad.split(rows.get(name, [16]))[i].double()
            plain_muon(parameter, gradient, momentum, 0.03, 2.0)
        optimizer.step()
        model.zero_grad()
    for (name, i), (parameter, _) in ours.items():
        torch.testing.assert_close(
            followed[name].weight.detach().split(rows.get(name, [16]))[i].double(), parameter, atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalized_matrices_have_singular_values_near_1(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices, dtype))
    assert values.max() < 1.35
    assert values.median() > 0.6


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest() -> None:
    model = GPT(MODERN, 11)
    adamw, muon = new_optimizer(model, TrainingSettings(optimizer="muon")).optimizers
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert taken == {n for n, p in model.named_parameters() if n.startswith("h.") and p.dim() == 2}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert rest | taken == set(names.values())
    assert not rest & taken


def test_muon_is_deterministic() -> None:
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        model = GPT(MODERN, 11)
        optimizer = new_optimizer(model, TrainingSettings(optimizer="muon"))
        for seed in range(3):
            step(model, optimizer, seed)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
