"""The share of a validation part that training has read: found where it was planted, by hashes and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from groundling.analysis.leakage import shared
from groundling.data.tokens import Tokens


def stored(path: Path, ids: np.ndarray) -> Tokens:
    ids.astype(np.uint32).tofile(path)
    return Tokens(path, "uint32", 0, len(ids))


def test_what_was_planted_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, validation = rng.integers(0, 60, 200_000), rng.integers(0, 60, 20_000)
    validation[3_000:9_000] = train[50_000:56_000]
    validation[15_000:15_029] = train[:29]  # shorter than a window
    windows = {tuple(train[i : i + 30]) for i in range(len(train) - 29)}
    expected = np.mean([tuple(validation[i : i + 30]) in windows for i in range(len(validation) - 29)])
    found = shared(stored(tmp_path / "a.bin", train), stored(tmp_path / "b.bin", validation), 30)
    assert found == expected == pytest.approx((6_000 - 29) / (20_000 - 29))


def test_long_parts_are_sampled(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 60, 2_500_000)
    tokens = stored(tmp_path / "a.bin", ids)
    assert shared(tokens, tokens) > 0.98  # all but the windows across two places of the sample
    other = stored(tmp_path / "b.bin", ids[::-1].copy())
    assert shared(tokens, other) == 0.0


def test_what_is_shorter_than_a_window_shares_nothing(tmp_path: Path) -> None:
    short = stored(tmp_path / "a.bin", np.arange(10))
    assert shared(short, short, 30) == 0.0
