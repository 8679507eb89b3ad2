"""A model whose matrices are divided among ranks trains as on one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from divided import Case, check, every_kind, parametrized, trained

from groundling.parallel.tensor import stacked_order

_FOUR: list[Case] = [
    ("pretraining", "gpt2", "adamw", {"tensor": 4}, False),
    ("pretraining", "qwen3", "muon", {"tensor": 2}, True),  # × data 2
    ("sft, packed", "gpt2", "adamw", {"tensor": 2}, False),
    ("sft", "qwen3", "adamw", {"tensor": 4}, False),
]
_TWO = every_kind("tensor")


def test_ranks_have_a_slice_of_each_stacked_matrix() -> None:
    """Of rows q0..q3, k0, k1 and v0, v1, the first rank has the first half of each."""
    assert stacked_order([4, 2, 2], 2).tolist() == [0, 1, 4, 6, 2, 3, 5, 7]
    weight = torch.arange(8)
    order = stacked_order([4, 2, 2], 2)
    assert weight[order][order.argsort()].tolist() == weight.tolist()


two, four = trained(_TWO, 2), trained(_FOUR, 4)


@pytest.mark.slow
@parametrized(_TWO)
def test_two_ranks_train_as_one(name: str, two: dict[str, dict[str, Any]]) -> None:
    check(two[name])
    assert two[name]["mesh"] == "2 (tensor 2)"


@pytest.mark.slow
@parametrized(_FOUR)
def test_four_ranks_train_as_one(name: str, four: dict[str, dict[str, Any]]) -> None:
    check(four[name])
