"""Optimizer state in 8 bits is the same to the bit on one process and on two that share each matrix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from started import torchrun


@pytest.mark.slow  # twenty seconds; that blocks lie within rows, test_optimizer_8bit.py shows in one process
def test_one_process_two_and_one_again_are_the_same_to_the_bit(tmp_path: Path) -> None:
    torchrun(2, str(Path(__file__).with_name("sharded_8bit.py")), str(tmp_path / "results.json"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == {"fsdp": [], "tensor": []}
