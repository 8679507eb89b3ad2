"""The loss in chunks is the loss, with the same gradients, and without all logits at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from groundling.config import PRESETS
from groundling.data.batches import Batch
from groundling.model import cross_entropy
from groundling.model.adapter import Adapter, AdapterSpec
from groundling.model.cross_entropy import chunked_cross_entropy
from groundling.model.gpt import GPT
from idle_task import IdleTask

B, T, C, V = 3, 37, 16, 70
FAMILIES = {name: dataclasses.replace(PRESETS[name].model, n_layer=1, block_size=64) for name in ("nano", "laptop")}


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 40 positions for every vocabulary, filled up to 128 tokens as on a GPU."""
    monkeypatch.setattr(cross_entropy, "LARGE_VOCABULARY", 1)
    monkeypatch.setitem(cross_entropy._CHUNK, "cpu", 40 * V)
    monkeypatch.setitem(cross_entropy._MULTIPLE, "cpu", 64)


def batch_of(weighted: bool) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V, (B, T + 1), generator=generator)
    weights = torch.rand(B, T, generator=generator).round(decimals=1) if weighted else None
    return Batch(tokens[:, :-1], tokens[:, 1:], weights)


def both(loss: Any, parameters: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    value = loss()
    return value.detach(), list(torch.autograd.grad(3 * value, parameters))


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients_are_those_of_the_whole(weighted: bool) -> None:
    torch.manual_seed(0)
    x, head, batch = torch.randn(B, T, C, requires_grad=True), torch.randn(V, C, requires_grad=True), batch_of(weighted)
    losses = F.cross_entropy(F.linear(x, head).flatten(0, 1), batch.targets.flatten(), reduction="none")
    weights = torch.ones(B * T) if batch.weights is None else batch.weights.flatten()
    value, gradients = both(lambda: (losses * weights).sum() / weights.sum(), [x, head])
    found, own = both(lambda: chunked_cross_entropy(x, head, batch.targets, batch.weights), [x, head])
    torch.testing.assert_close(found, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(own, gradients, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        again = chunked_cross_entropy(x, head, batch.targets, batch.weights)
    assert torch.equal(again, found) and not again.requires_grad


@pytest.mark.usefixtures("chunks")
def test_small_shares_survive_float16() -> None:
    """Divided by as many positions before the products, most of the gradient would be too small for float16."""
    torch.manual_seed(0)
    x, head, targets = torch.randn(1, 2048, C), torch.randn(V, C, requires_grad=True), torch.randint(V, (1, 2048))
    expected = both(lambda: cross_entropy.cross_entropy(F.linear(x, head), targets), [head])
    with torch.autocast("cpu", dtype=torch.float16):
        found = both(lambda: chunked_cross_entropy(x, head, targets), [head])
    torch.testing.assert_close(found, expected, rtol=0.01, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapted", [False, True])
def test_a_task_learns_the_same(family: str, adapted: bool, request: pytest.FixtureRequest) -> None:
    """Also with an adapter, whose weights exist only during the forward pass."""
    torch.manual_seed(0)
    model = GPT(FAMILIES[family], V)
    trained = Adapter(model, AdapterSpec(2, new_rows=3), seed=1) if adapted else model
    parameters = [p for p in trained.parameters() if p.requires_grad]
    for parameter in parameters:
        torch.nn.init.normal_(parameter.data, std=0.2)
    value, gradients = both(lambda: IdleTask().loss(trained, batch_of(True)).value, parameters)
    request.getfixturevalue("chunks")
    found, own = both(lambda: IdleTask().loss(trained, batch_of(True)).value, parameters)
    torch.testing.assert_close(found, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(own, gradients, rtol=1e-5, atol=1e-6)


def test_a_small_vocabulary_keeps_its_bits() -> None:
    torch.manual_seed(0)
    model, batch = GPT(FAMILIES["nano"], V), batch_of(False)
    expected = F.cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten())
    assert torch.equal(IdleTask().loss(model, batch).value, expected)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_a_large_vocabulary_never_has_all_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab_size = cross_entropy.LARGE_VOCABULARY
    monkeypatch.setitem(cross_entropy._CHUNK, "cpu", 40 * vocab_size)
    narrow = dataclasses.replace(FAMILIES["nano"], n_embd=16)
    model, batch = GPT(narrow, vocab_size), batch_of(False)
    with Largest() as largest:
        IdleTask().loss(model, batch).value.backward()
    assert largest.numbers == max(40 * vocab_size, model.wte.weight.numel()) < batch.tokens.numel() * vocab_size


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("family", ["nano", pytest.param("laptop", marks=pytest.mark.slow)])
def test_model_and_loss_are_one_graph(family: str) -> None:
    """What the compiler cannot follow is an error."""
    torch.manual_seed(0)
    model = GPT(FAMILIES[family], V).train()
    compiled = torch.compile(model, backend="eager", dynamic=False, fullgraph=True)
    value, gradients = both(lambda: IdleTask().loss(model, batch_of(True)).value, list(model.parameters()))
    found, own = both(lambda: IdleTask().loss(compiled, batch_of(True)).value, list(model.parameters()))
    torch.testing.assert_close(found, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(own, gradients, rtol=1e-5, atol=1e-6)
