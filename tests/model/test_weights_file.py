"""Safetensors by their headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from groundling.model.weights_file import read_shapes


@pytest.mark.parametrize("length", [0x80, 0x380, 0x4B50, 0x504B])
def test_a_length_that_begins_like_a_pickle_or_a_zip_is_a_length(tmp_path: Path, length: int) -> None:
    """Hypothesis found this: one header in 256 has such a length."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).ljust(length)
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + header.encode() + b"\0" * 8)
    assert read_shapes(tmp_path / "a.safetensors") == {"a": (2,)}
