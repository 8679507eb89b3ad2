"""Parameter groups, and the optimizer's state as named tensors."""

from __future__ import annotations

import pytest
import torch

from groundling.config import ModelSettings, TrainingSettings
from groundling.model.gpt import GPT
from groundling.training.optimizer import load_state_tensors, new_optimizer, state_tensors


def model_of(n_embd: int = 16) -> GPT:
    torch.manual_seed(0)
    return GPT(ModelSettings(block_size=8, n_layer=2, n_head=2, n_embd=n_embd), 11)


def step(model: GPT, optimizer: torch.optim.Optimizer, seed: int) -> None:
    tokens = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(seed))
    model(tokens).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_decay_and_vectors_do_not() -> None:
    model = model_of()
    optimizer = new_optimizer(model, TrainingSettings(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_vector = name.endswith("bias") or "ln_" in name
        assert decay[id(parameter)] == (0.0 if is_vector else 0.3), name


def test_saved_state_continues_as_if_it_had_never_stopped() -> None:
    settings = TrainingSettings()
    model = model_of()
    optimizer = new_optimizer(model, settings)
    for seed in range(3):
        step(model, optimizer, seed)
    twin = model_of()
    twin.load_state_dict(model.state_dict())
    twin_optimizer = new_optimizer(twin, settings)
    load_state_tensors(twin, twin_optimizer, {k: v.clone() for k, v in state_tensors(model, optimizer).items()})
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(twin, twin_optimizer, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_state_of_another_model_is_refused() -> None:
    model, other = model_of(16), model_of(32)
    optimizer = new_optimizer(model, TrainingSettings())
    step(model, optimizer, 0)
    with pytest.raises(ValueError, match="does not belong to this model"):
        load_state_tensors(other, new_optimizer(other, TrainingSettings()), state_tensors(model, optimizer))
