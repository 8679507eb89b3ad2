"""A model whose blocks are divided among ranks trains as on one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from divided import Case, check, every_kind, parametrized, trained

from groundling.data.batches import Batch
from groundling.parallel.pipeline import of_one_shape

_FOUR: list[Case] = [
    ("pretraining", "gpt2", "adamw", {"pipeline": 4}, False),
    ("pretraining", "qwen3", "adamw", {"pipeline": 2, "tensor": 2}, False),
    ("pretraining", "gpt2", "muon", {"pipeline": 2, "tensor": 2}, True),
    ("sft, packed", "gpt2", "adamw", {"pipeline": 2}, False),  # × data 2
    ("sft", "qwen3", "adamw", {"pipeline": 2}, False),
]
_TWO = every_kind("pipeline")


def test_micro_batches_are_filled_up_to_one_shape_without_weight() -> None:
    small, large = Batch(torch.ones(1, 2), torch.ones(1, 2)), Batch(torch.ones(2, 3), torch.ones(2, 3))
    filled, same = of_one_shape([small, large])
    assert same is large
    assert filled.tokens.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert filled.weights is not None
    assert filled.weights.tolist() == [[1, 1, 0], [0, 0, 0]]


two, four = trained(_TWO, 2), trained(_FOUR, 4)


@pytest.mark.slow
@parametrized(_TWO)
def test_two_stages_train_as_one(name: str, two: dict[str, dict[str, Any]]) -> None:
    check(two[name])
    assert two[name]["mesh"] == "2 (pipeline 2)"


@pytest.mark.slow
@parametrized(_FOUR)
def test_four_ranks_train_as_one(name: str, four: dict[str, dict[str, Any]]) -> None:
    check(four[name])
