"""Models and contexts that are divided among processes: what works, and what is refused with a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from divided import Case, check, parametrized, trained

from groundling.config import Config
from groundling.parallel.plan import check_processes

_CASES: list[Case] = [
    ("pretraining", "gpt2", "muon", {"pipeline": 2}, False),
    ("pretraining", "qwen3", "muon", {"tensor": 2}, False),
    ("sft, packed", "gpt2", "adamw", {"context": 2}, False),
]
_MODEL: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "block_size": 32}


two = trained(_CASES, 2)


@parametrized(_CASES)
def test_two_processes_of_each_kind_train_as_one(name: str, two: dict[str, dict[str, Any]]) -> None:
    check(two[name])


@pytest.mark.parametrize(
    ("settings", "processes", "sentence"),
    [
        ({"tensor_parallel": 4}, 4, "--tensor-parallel 4 gives all ranks equal parts, but 2 key and value heads"),
        ({"tensor_parallel": 2, "n_head": 3, "n_kv_head": 3, "n_embd": 33}, 2, "but 3 attention heads"),
        ({"tensor_parallel": 2, "mlp_size": 33}, 2, "but 33 hidden units"),
        ({"pipeline_parallel": 3}, 3, "--pipeline-parallel 3 needs a block for each rank, but --n-layer is 2."),
        ({"context_parallel": 3}, 3, "--context-parallel 3 gives all ranks equal parts, but --block-size 32"),
        ({"context_parallel": 2, "pipeline_parallel": 2}, 4, "--pipeline-parallel 2 does not work with --context-para"),
        ({"tensor_parallel": 2, "parallel": "fsdp"}, 2, "--tensor-parallel 2 does not work with --parallel fsdp"),
        ({"pipeline_parallel": 2, "compile": "on"}, 2, "--pipeline-parallel 2 does not work with --compile on"),
        ({"context_parallel": 2, "generations": 2}, 2, "--context-parallel 2 does not work with --generations"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_is_said(settings: dict[str, Any], processes: int, sentence: str) -> None:
    config = Config.build("text.txt", "nano", **_MODEL | settings)
    with pytest.raises(ValueError, match=sentence):
        check_processes(config, processes)


def test_an_adapter_is_not_divided() -> None:
    parent = Config.build("", "nano", **_MODEL)
    config = Config.tuning("sft", "chats.jsonl", parent, "parent", adapter=2, tensor_parallel=2)
    with pytest.raises(ValueError, match="--tensor-parallel 2 does not work with --adapter"):
        check_processes(config, 2)


def test_what_can_be_divided_is_accepted() -> None:
    ways = {"tensor_parallel": 2, "pipeline_parallel": 2}
    check_processes(Config.build("text.txt", "nano", **_MODEL, **ways), 8)
