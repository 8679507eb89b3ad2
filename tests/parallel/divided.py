"""The cases of model_parallel.py, each trained by one torchrun, and what must be the same as with one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from started import torchrun

Case = tuple[str, str, str, dict[str, int], bool]
"""Task, family, optimizer, how many ranks divide what, and whether the run is also continued in the other way."""


def name_of(case: Case) -> str:
    task, family, optimizer, ways, _ = case
    return "-".join([task.replace(", ", "-"), family, optimizer, *(f"{way}{n}" for way, n in ways.items())])


def compared(cases: Sequence[Case], folder: Path, processes: int) -> dict[str, dict[str, Any]]:
    """What differs in each case, by name. One torchrun trains them all."""
    names = ("task", "family", "optimizer", "ways", "resumes")
    words = json.dumps([dict(zip(names, case, strict=True)) for case in cases])
    torchrun(processes, str(Path(__file__).with_name("model_parallel.py")), words, str(folder))
    results = json.loads((folder / "results.json").read_text())
    return dict(zip(map(name_of, cases), results, strict=True))


def check(found: dict[str, Any]) -> None:
    """What differs is the order of sums: float32 has 7 digits. A part that is missing or counted twice changes the
    second digit of a gradient."""
    wrong = {name: error for name, error in found["gradients"].items() if error > 3e-6}
    assert not wrong
    assert found["learned"] > 0.03
    assert found["losses"] < 2e-6
    assert found["norms"] < 1e-5
    assert found["scores"] < 1e-6
    assert found["weights"] < 5e-5
    assert found["training"] < 5e-5
    assert found["is_saved"]
    assert found["samples"][0] == found["samples"][1]
    assert max(found.get("resumed", [0.0])) < 5e-5


def trained(cases: Sequence[Case], processes: int) -> Any:
    """A fixture: what differs in each case, by name."""

    @pytest.fixture(scope="module")
    def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
        return compared(cases, tmp_path_factory.mktemp("ranks"), processes)

    return found


def every_kind(way: str) -> list[Case]:
    """Pretraining in both families with both optimizers, where two ranks divide the work in this `way`."""
    return [
        ("pretraining", family, optimizer, {way: 2}, True)
        for family in ("gpt2", "qwen3")
        for optimizer in ("adamw", "muon")
    ]


def parametrized(cases: Sequence[Case]) -> Any:
    return pytest.mark.parametrize("name", list(map(name_of, cases)))
