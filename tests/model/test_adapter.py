"""Adapters: what they start as, what they compute, and what gets a gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from groundling.config import ModelSettings
from groundling.model.adapter import Adapter, AdapterKind, AdapterSpec, LowRank
from groundling.model.gpt import GPT

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 8}
QWEN3 = ModelSettings(
    **SHAPE, norm="rmsnorm", position="rope", mlp="swiglu", n_kv_head=2, head_size=6, qk_norm=True, tie_head=False
)
GPT2 = ModelSettings(**SHAPE, norm="layernorm", position="learned", mlp="gelu", tie_head=True)
KINDS: tuple[AdapterKind, ...] = ("lora", "rslora", "dora")
TOKENS = torch.tensor([[1, 5, 2, 19], [3, 18, 0, 7]])


def adapted(config: ModelSettings, spec: AdapterSpec, stirred: bool = False) -> tuple[GPT, Adapter]:
    """A model with an adapter. `stirred`: with random factors, as if it had been trained."""
    torch.manual_seed(0)
    model = GPT(config, 20).eval()
    adapter = Adapter(model, spec, seed=1)
    if stirred:
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model, adapter


@pytest.mark.parametrize("config", [GPT2, QWEN3], ids=["gpt2", "qwen3"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_no_bit(kind: AdapterKind, config: ModelSettings) -> None:
    model, adapter = adapted(config, AdapterSpec(2, kind=kind, new_rows=3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.equal(adapter(TOKENS), model(TOKENS))
    adapter.merge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("config", [GPT2, QWEN3], ids=["gpt2", "qwen3"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_unmerged_to_the_bit(kind: AdapterKind, config: ModelSettings) -> None:
    model, adapter = adapted(config, AdapterSpec(2, kind=kind, new_rows=3), stirred=True)
    untouched = model(TOKENS)
    unmerged = adapter(TOKENS)
    assert torch.equal(model(TOKENS), untouched)  # the model was not changed by that
    adapter.merge()
    assert torch.equal(model(TOKENS), unmerged)
    adapter.merge()  # from the weights before, and not on top of those
    assert torch.equal(model(TOKENS), unmerged)
    assert not torch.allclose(unmerged, untouched, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adapter(TOKENS), model(TOKENS))


@pytest.mark.parametrize(("kind", "scale"), [("lora", 6 / 4), ("rslora", 6 / 2)])
def test_the_change_is_the_scaled_product(kind: AdapterKind, scale: float) -> None:
    model, adapter = adapted(QWEN3, AdapterSpec(4, alpha=6, kind=kind), stirred=True)
    factors, weight = adapter.state_dict(), model.h[1].attn.c_attn.weight
    product = [factors[f"h.1.attn.c_attn.{p}.lora_B"] @ factors[f"h.1.attn.c_attn.{p}.lora_A"] for p in "qkv"]
    assert [tuple(each.shape) for each in product] == [(24, 16), (12, 16), (12, 16)]
    torch.testing.assert_close(adapter.weights()["h.1.attn.c_attn.weight"], weight + scale * torch.cat(product))
    assert AdapterSpec(4).scale == 2.0 and AdapterSpec(4, kind="rslora").scale == 4.0  # alpha is twice the rank


def test_each_matrix_has_factors_of_its_own_and_nothing_else_is_trained() -> None:
    model, adapter = adapted(QWEN3, AdapterSpec(2, new_rows=3))
    layers = ["attn.c_attn.q", "attn.c_attn.k", "attn.c_attn.v", "attn.c_proj", "mlp.c_fc.gate", "mlp.c_fc.value",
              "mlp.c_proj"]  # fmt: skip
    names = {f"h.{i}.{layer}.{factor}" for i in (0, 1) for layer in layers for factor in ("lora_A", "lora_B")}
    assert {name for name, _ in adapter.named_parameters()} == names | {"wte.rows", "lm_head.rows"}
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    adapter(TOKENS).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in adapter.parameters())


def test_the_gradients_are_those_of_the_weights_times_the_other_factor() -> None:
    model, adapter = adapted(GPT2, AdapterSpec(2, alpha=3, new_rows=2), stirred=True)
    targets = TOKENS.roll(-1, 1)
    F.cross_entropy(adapter(TOKENS).flatten(0, 1), targets.flatten()).backward()
    adapter.merge()
    model.requires_grad_(True)
    F.cross_entropy(model(TOKENS).flatten(0, 1), targets.flatten()).backward()
    whole = model.h[0].mlp.c_proj.weight.grad
    part = adapter.get_submodule("h.0.mlp.c_proj")
    assert isinstance(part, LowRank)
    torch.testing.assert_close(part.lora_A.grad, 1.5 * part.lora_B.T @ whole)
    torch.testing.assert_close(part.lora_B.grad, 1.5 * whole @ part.lora_A.T)
    torch.testing.assert_close(adapter.rows["wte"].grad, model.wte.weight.grad[-2:])  # of both uses of a tied head


def test_dora_learns_the_lengths_of_rows_and_its_norm_has_no_gradient() -> None:
    base, generator = torch.randn(5, 7), torch.Generator().manual_seed(0)
    base[3] = 0  # a row without a direction
    part = LowRank(base, AdapterSpec(2, kind="dora"), generator)
    with torch.no_grad():
        part.lora_B.normal_(generator=generator)
        part.magnitude.mul_(torch.arange(1.0, 6.0))
    torch.testing.assert_close(part().norm(dim=1)[[0, 1, 2, 4]], part.magnitude.detach()[[0, 1, 2, 4]])
    above = torch.randn(5, 7, generator=generator)
    (part() * above).sum().backward()
    changed = (base + 2 * part.lora_B @ part.lora_A).detach()
    factor = (part.magnitude / changed.norm(dim=1)).detach()
    torch.testing.assert_close(part.lora_B.grad, (2 * factor[:, None] * above) @ part.lora_A.detach().T)
    torch.testing.assert_close(part.magnitude.grad, (above * changed).sum(1) / changed.norm(dim=1))
    assert LowRank(base, AdapterSpec(2, kind="dora"), generator)().isfinite().all()


def test_only_the_last_rows_of_the_vocabulary_change() -> None:
    model, adapter = adapted(QWEN3, AdapterSpec(2, new_rows=3), stirred=True)
    weights = adapter.weights()
    for name in ("wte.weight", "lm_head.weight"):
        differs = (weights[name] != model.get_parameter(name)).any(1)
        assert differs.tolist() == [False] * 17 + [True] * 3


def test_the_first_factor_depends_on_the_seed_alone() -> None:
    torch.manual_seed(7)
    model, adapter = adapted(GPT2, AdapterSpec(2))
    torch.manual_seed(8)
    again = Adapter(model, AdapterSpec(2), seed=1).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in adapter.state_dict().items())
    other = Adapter(model, AdapterSpec(2), seed=2).state_dict()
    assert not torch.equal(other["h.0.mlp.c_fc.lora_A"], again["h.0.mlp.c_fc.lora_A"])
    bound = 1 / math.sqrt(16)  # PEFT's: uniform in ± 1/√in
    assert 0.9 * bound < float(again["h.0.mlp.c_fc.lora_A"].abs().max()) <= bound
