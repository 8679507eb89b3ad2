"""The learning rate over a run."""

from __future__ import annotations

from itertools import pairwise

import pytest

from groundling.config import TrainingSettings
from groundling.training.schedule import rate_factor

SETTINGS = {"steps": 100, "warmup_steps": 10, "final_lr_fraction": 0.1}


def rates(**changes: object) -> list[float]:
    settings = TrainingSettings(**(SETTINGS | changes))  # type: ignore[arg-type]
    return [rate_factor((step + 1) / settings.steps, settings) for step in range(settings.steps)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warm_up_rises_in_equal_steps_to_the_peak(schedule: str) -> None:
    assert rates(schedule=schedule)[:10] == pytest.approx([i / 10 for i in range(1, 11)])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_ends_at_the_floor_with_the_last_step(schedule: str) -> None:
    after = rates(schedule=schedule)[10:]
    assert all(a > b for a, b in pairwise(after))
    assert after[-1] == pytest.approx(0.1)


def test_cosine_is_half_way_in_the_middle_and_flat_at_both_ends() -> None:
    cosine = rates(steps=110)[10:]
    assert cosine[49] == pytest.approx(0.55)
    assert 1 - cosine[0] < 0.001
    assert cosine[-2] - cosine[-1] < 0.001


def test_linear_falls_in_equal_steps() -> None:
    linear = rates(schedule="linear")[9:]
    assert [a - b for a, b in pairwise(linear)] == pytest.approx([0.01] * 90)


def test_constant_stays() -> None:
    assert set(rates(schedule="constant")[9:]) == {1.0}


def test_without_warm_up_it_starts_near_the_peak() -> None:
    assert rates(warmup_steps=0)[0] == pytest.approx(1.0, abs=0.001)
