"""Training on several processes equals training on one: a torchrun trains all cases, see data_parallel.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from started import torchrun

_SHORT = [
    ("pretraining", "gpt2", "muon", 2, "ddp"),
    ("pretraining", "qwen3", "muon", 2, "fsdp"),
    ("pretraining", "qwen3", "muon", 1, "fsdp, one, fsdp"),
    ("sft", "gpt2", "adamw", 2, "fsdp"),
    ("sft, adapter", "gpt2", "adamw", 1, "ddp"),
]
_MODES = ("ddp", "fsdp", "fsdp, one, ddp", "ddp, one, fsdp")
_ALL = [
    *product(["pretraining"], ["gpt2", "qwen3"], ["adamw", "muon"], [1, 2], _MODES),
    *product(["sft"], ["gpt2", "qwen3"], ["adamw"], [1, 2], ["ddp", "fsdp"]),
    ("sft, adapter", "qwen3", "adamw", 2, "ddp"),
]


def compared(
    cases: Sequence[tuple[Any, ...]], folder: Path, processes: int, **environment: str
) -> list[dict[str, Any]]:
    names = ("task", "family", "optimizer", "accumulate", "mode")
    words = json.dumps([dict(zip(names, case, strict=True)) for case in cases])
    script = Path(__file__).with_name("data_parallel.py")
    torchrun(processes, str(script), words, str(folder), **environment)
    return list(json.loads((folder / "results.json").read_text()).values())


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return compared(_SHORT, tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return compared(_ALL, tmp_path_factory.mktemp("four"), 4)


@pytest.fixture(scope="module")
def two_machines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Four processes, of which two at a time believe that they are on the same machine."""
    cases = [case for case in _ALL if case[-1] == "fsdp"]
    return compared(cases, tmp_path_factory.mktemp("machines"), 4, GROUNDLING_TEST_LOCAL_SIZE="2")


def check(found: dict[str, Any]) -> None:
    """What differs is the order of sums: float32 has 7 digits. Rows that are missing, counted twice or weighted wrongly
    change the loss in its second digit."""
    assert found["learned"] > 0.03
    assert found["losses"] < 5e-6
    assert found["norms"] < 5e-6
    assert max(found["evaluations"]) < 1e-6
    assert found["weights"] < 2e-5
    assert found["quantities"] == found["quantities_of_one"]
    assert found["is_saved"]


@pytest.mark.parametrize("number", range(len(_SHORT)), ids=["-".join(map(str, case)) for case in _SHORT])
def test_two_processes_train_as_one(number: int, two: list[dict[str, Any]]) -> None:
    check(two[number])
    shards = ", shards 2" if str(_SHORT[number][-1]).endswith("fsdp") else ""
    assert two[number]["mesh"] == f"2 (data 2{shards})"
    assert two[number]["files"] == (4 if shards else 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(_ALL)), ids=["-".join(map(str, case)) for case in _ALL])
def test_four_processes_train_as_one(number: int, four: list[dict[str, Any]]) -> None:
    check(four[number])


@pytest.mark.slow
def test_each_machine_has_a_copy_of_the_shards(two_machines: list[dict[str, Any]]) -> None:
    for found in two_machines:
        check(found)
        assert found["mesh"] == "4 (data 4, shards 2)"
