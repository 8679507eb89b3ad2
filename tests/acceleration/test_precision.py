"""Weights in fewer bits: near the model, and far smaller."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from groundling.acceleration.precision import with_precision
from groundling.config import ModelSettings, Sampling
from groundling.inference.engine import generate
from groundling.model.gpt import GPT
from untrained import untrained

GPT2 = ModelSettings(block_size=32, n_layer=3, n_head=4, n_embd=64)
FAMILIES = {
    "gpt2": GPT2,
    "gpt2-untied": replace(GPT2, tie_head=False),
    "odd-width": replace(GPT2, n_embd=60),
    "modern": replace(GPT2, n_kv_head=2, norm="rmsnorm", position="rope", mlp="swiglu"),
}
V = 70


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> GPT:
    return untrained(FAMILIES[request.param], V, spread=0.1)


def tokens() -> torch.Tensor:
    return torch.randint(V, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("precision", "divergence"), [("bfloat16", 2e-4), ("int8", 2e-3)])
@torch.inference_mode()
def test_it_predicts_nearly_the_same(model: GPT, precision: str, divergence: float) -> None:
    p = model(tokens()).log_softmax(-1).flatten(0, 1)
    q = with_precision(model, precision)(tokens()).log_softmax(-1).flatten(0, 1)  # type: ignore[arg-type]
    assert 0 < F.kl_div(q, p, log_target=True, reduction="batchmean") < divergence
    assert q.dtype == torch.float32


@torch.inference_mode()
def test_bfloat16_is_what_training_in_bfloat16_computes(model: GPT) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = model(tokens()).float()
    exact, ours = model(tokens()), with_precision(model, "bfloat16")(tokens())
    assert (ours - exact).norm() < 1.1 * (trained - exact).norm()


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_cache_changes_nothing(model: GPT, precision: str) -> None:
    smaller = with_precision(model, precision)  # type: ignore[arg-type]
    cache = smaller.new_cache(4)
    with torch.inference_mode():
        parts = [smaller(part, cache) for part in tokens().split([7, 1, 1, 20, 3], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), smaller(tokens()), atol=0.1, rtol=0.02)
    assert len(list(generate(smaller, [1, 2], 40, Sampling(temperature=0.0)))) == 40


def test_the_model_itself_is_left_alone(model: GPT) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with_precision(model, "int8")
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert with_precision(model, "float32") is model  # too small to gain


def test_other_precisions_are_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match="--precision 'int3': choose one of float32, bfloat16, int8"):
        with_precision(model, "int3")  # type: ignore[arg-type]


def test_float32_computes_what_the_model_does() -> None:
    torch.manual_seed(0)
    model = GPT(replace(GPT2, n_layer=1, n_embd=192), V).eval()
    ready = with_precision(model, "float32")
    assert ready is not model
    with torch.inference_mode():
        torch.testing.assert_close(ready(tokens()), model(tokens()), atol=1e-5, rtol=1e-5)
