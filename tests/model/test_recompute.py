"""Activation checkpointing: less is kept, and losses and gradients are the same to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import groundling
from groundling.config import Config, ModelSettings
from groundling.machine import has_compiler
from groundling.model.adapter import Adapter, AdapterSpec
from groundling.model.compiled import compiled_parts
from groundling.model.gpt import GPT
from groundling.model.packing import PackedRows
from groundling.planning.planner import memory_needed, with_recompute
from tiny import TINY

MODERN: dict[str, Any] = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "n_kv_head": 1}
FAMILIES = {"gpt2": {}, "qwen3": MODERN, "windows": MODERN | {"sliding_window": 8, "sliding_layers": "SF"}}
TOKENS = torch.arange(96).view(2, 48) % 50


def model_of(family: str) -> GPT:
    torch.manual_seed(0)
    return GPT(ModelSettings(block_size=48, n_layer=2, n_head=2, n_embd=32, dropout=0.3, **FAMILIES[family]), 50)


def results(
    model: GPT, forward: Callable[..., torch.Tensor], trained: torch.nn.Module, dtype: torch.dtype, recompute: Any
) -> list[torch.Tensor]:
    """The loss, all gradients, and the random number that follows."""
    for block in model.train().blocks:
        block.recompute = recompute
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits = forward(TOKENS)
    loss = F.cross_entropy(logits.float().flatten(0, 1), TOKENS.roll(-1, 1).flatten())
    gradients = torch.autograd.grad(loss, [p for p in trained.parameters() if p.requires_grad])
    return [loss.detach(), *gradients, torch.rand(())]


def equal(before: list[torch.Tensor], now: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_adapter", [False, True], ids=["all weights", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_the_same_to_the_bit(family: str, with_adapter: bool, dtype: torch.dtype) -> None:
    model = model_of(family)
    trained: GPT | Adapter = Adapter(model, AdapterSpec(4), seed=0) if with_adapter else model
    if with_adapter:
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    plain = results(model, trained, trained, dtype, "none")
    for recompute in ("attention", "blocks"):
        assert equal(plain, results(model, trained, trained, dtype, recompute)), recompute


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_blocks_are_computed_again_to_the_bit(family: str, dtype: torch.dtype) -> None:
    model = model_of(family)
    torch.compiler.reset()
    forward = partial(model, run=compiled_parts())
    plain = results(model, forward, model, dtype, "none")
    assert equal(plain, results(model, forward, model, dtype, "blocks"))
    torch.compiler.reset()  # attention is computed again inside of a compiled block, which rounds otherwise
    again = results(model, partial(model, run=compiled_parts()), model, dtype, "attention")
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 if dtype == torch.float32 else 1e-3)


def test_packed_rows_are_computed_again_with_their_mask() -> None:
    model = model_of("windows")
    documents = torch.arange(48).expand(2, 48) // 20
    forward = partial(model, cache=PackedRows(documents))
    plain = results(model, forward, model, torch.float32, "none")
    assert equal(plain, results(model, forward, model, torch.float32, "blocks"))


def test_little_is_kept() -> None:
    model, kept = model_of("qwen3").train(), dict[str, int]()
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[recompute] += tensor.nbytes
        return tensor

    for recompute in ("none", "attention", "blocks"):
        kept[recompute] = 0
        for block in model.blocks:
            block.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.hidden(TOKENS)
    assert kept["attention"] < 0.8 * kept["none"]
    assert kept["blocks"] < 0.15 * kept["none"]


def test_a_run_that_computes_again_learns_the_same(text_file: Path) -> None:
    settings = TINY | {"steps": 3, "warmup_steps": 1, "eval_every": 3, "sample_every": 0, "dropout": 0.2}
    weights = [
        groundling.train(text_file, name=each, recompute=each, on_event=lambda _: None, **settings).model.state_dict()
        for each in ("none", "blocks")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_plan_computes_again_what_does_not_fit() -> None:
    config = Config.build("", "laptop", block_size=16384, batch_size=1)
    needed = {name: memory_needed(config.model, 65, 1, name) for name in ("none", "attention", "blocks")}
    assert needed["none"] > needed["attention"] > needed["blocks"] > 0.5e9
    for name, memory in needed.items():
        assert with_recompute(config, set(), 65, memory).training.recompute == name
    assert with_recompute(config, set(), 65, 1).training.recompute == "blocks"
    assert with_recompute(config, {"recompute"}, 65, 1).training.recompute == "none"
