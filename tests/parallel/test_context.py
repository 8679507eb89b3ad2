"""A context that is divided among ranks trains as on one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from divided import Case, check, every_kind, parametrized, trained

from groundling.data.batches import Batch
from groundling.parallel.context import time_slice

_FOUR: list[Case] = [
    ("pretraining", "gpt2", "adamw", {"context": 4}, False),
    ("pretraining", "qwen3", "muon", {"context": 2}, True),  # × data 2
    ("pretraining", "qwen3", "adamw", {"context": 2, "tensor": 2}, False),
    ("sft, packed", "gpt2", "adamw", {"context": 2}, False),
    ("sft", "qwen3", "adamw", {"context": 4}, False),
]
_TWO = every_kind("context")


class _Mesh:
    """As much of a DeviceMesh as `time_slice` asks for."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.get_local_rank, self.size = (lambda: rank), (lambda: ranks)


def test_ranks_learn_slices_of_time_and_padding_counts_nothing() -> None:
    batch = Batch(torch.arange(10).view(2, 5), torch.arange(10).view(2, 5) + 1, extras={"documents": torch.ones(2, 5)})
    first, second = (time_slice(batch, _Mesh(rank, 2)) for rank in range(2))  # type: ignore[arg-type]
    assert first.tokens.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert second.tokens.tolist() == [[3, 4, 0], [8, 9, 0]]
    assert second.targets.tolist() == [[4, 5, 0], [9, 10, 0]]
    assert (first.weight, second.weight) == (6, 4)
    assert second.extras["documents"].tolist() == [[1, 1, 1, 1, 1, -1]] * 2


two, four = trained(_TWO, 2), trained(_FOUR, 4)


@pytest.mark.slow
@parametrized(_TWO)
def test_two_ranks_train_as_one(name: str, two: dict[str, dict[str, Any]]) -> None:
    check(two[name])
    assert two[name]["mesh"] == "2 (context 2)"


@pytest.mark.slow
@parametrized(_FOUR)
def test_four_ranks_train_as_one(name: str, four: dict[str, dict[str, Any]]) -> None:
    check(four[name])
