"""Several documents in a row: none sees another, and each is where it would be alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from groundling.config import ModelSettings
from groundling.data.batches import Batch
from groundling.data.examples import Examples
from groundling.data.packing import PackedExamples, best_fit
from groundling.model.gpt import GPT
from groundling.model.packing import PackedRows

MODERN = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "n_kv_head": 1}


def examples() -> Examples:
    random = np.random.default_rng(0)
    lengths = random.integers(4, 33, 25)
    return Examples.of([(random.integers(0, 20, n), np.r_[False, random.random(n - 1) > 0.3]) for n in lengths], 32)


def gradient(model: GPT, batch: Batch, *packed: PackedRows) -> tuple[torch.Tensor, list[torch.Tensor]]:
    assert batch.weights is not None
    losses = F.cross_entropy(model(batch.tokens, *packed).flatten(0, 1), batch.targets.flatten(), reduction="none")
    total = (losses * batch.weights.flatten()).sum() / batch.weights.sum()
    return total.detach(), list(torch.autograd.grad(total, list(model.parameters())))


@pytest.mark.parametrize("family", [{}, MODERN], ids=["learned positions", "rope"])
def test_packed_is_the_same_as_padded(family: dict[str, Any]) -> None:
    whole = examples()
    packed = PackedExamples(whole)
    n = len(packed.lengths)
    assert n < len(whole) and packed.lengths.sum() == whole.lengths.sum() and packed.lengths.max() <= 32
    model = GPT(ModelSettings(block_size=32, n_layer=2, n_head=2, n_embd=16, **family), 20)
    with torch.no_grad():  # new weights are so small that the text before a token hardly matters
        for parameter in (*model.h.parameters(), model.wte.weight):
            parameter.mul_(10)
    loss, gradients = gradient(model, whole.batch(np.arange(len(whole))))
    batch = packed.batch(np.arange(n))
    again, others = gradient(model, batch, PackedRows(batch.extras["documents"]))
    torch.testing.assert_close(again, loss)
    for ours, theirs in zip(gradients, others, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    mixed, _ = gradient(model, batch)  # as if a row were one document
    assert abs(mixed - loss) > 1e-3


def test_positions_and_masks() -> None:
    rows = PackedRows(torch.tensor([[0, 0, 0, 1, 1, 2]]))
    assert rows.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    seen = [[int(x) for x in row] for row in rows.attn_mask[0, 0]]
    assert seen == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1],
    ]  # fmt: skip


def test_the_fullest_bin_that_has_room() -> None:
    assert best_fit(np.array([6, 3, 5, 4, 2]), 10) == [[0, 3], [2, 1, 4]]
    assert best_fit(np.array([12, 10, 1]), 10) == [[0], [1], [2]]
