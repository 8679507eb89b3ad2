"""When a run ends, and how far it is: by steps, and by a clock that the test turns itself."""

from __future__ import annotations

import pytest

from groundling.config import TrainingSettings
from groundling.training import clock as clock_module
from groundling.training.clock import Clock


class Time:
    """Stands in for time.perf_counter."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock_module.time, "perf_counter", time)
    return time


def test_by_steps_the_clock_does_not_matter(time: Time) -> None:
    clock = Clock(0, TrainingSettings(steps=10, warmup_steps=0))
    time.now += 1e6
    assert [clock.progress(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert not clock.is_over(9)
    assert clock.is_over(10)


def run(time: Time, minutes: float, step: list[float], evaluation: float, before: float = 3.0) -> tuple[float, float]:
    """What `fit` does with the clock, with steps that take `step[i]` seconds in the i-th part of the time; returns
    seconds from the command to the end, and the progress of the last step."""
    start, evaluate_every, done = time.now, 40, 0
    time.now += before
    clock = Clock(before, TrainingSettings(minutes=minutes, warmup_steps=0))
    progress = 0.0
    while True:
        over = clock.is_over(done)
        if over or (done and done % evaluate_every == 0):
            with clock.timing("evaluation"):
                time.now += evaluation
            with clock.timing("save"):
                time.now += 0.2
        if over:
            return time.now - start, progress
        progress = clock.progress(done)
        part = min(len(step) - 1, int((time.now - start) / (60 * minutes) * len(step)))
        with clock.timing("step"):
            time.now += step[part]
        done += 1


@pytest.mark.parametrize("minutes", [1.0, 3.0, 15.0, 90.0])
@pytest.mark.parametrize("step", [[0.05], [0.4], [0.2, 0.6], [0.6, 0.2], [0.1, 0.1, 0.9, 0.1]])
@pytest.mark.parametrize("evaluation", [0.3, 3.0])
def test_it_ends_on_time_at_the_schedule_s_end(
    time: Time, minutes: float, step: list[float], evaluation: float
) -> None:
    took, progress = run(time, minutes, step, evaluation)
    after = 2.0  # what follows the last save
    assert abs(took + after - 60 * minutes) <= max(5.0, 0.02 * 60 * minutes)
    assert progress > 0.97


def test_a_day_of_slow_steps_ends_on_time(time: Time) -> None:
    took, progress = run(time, 1440.0, [4.0, 12.0], 30.0)
    assert abs(took + 2.0 - 86_400) <= 0.02 * 86_400
    assert progress > 0.97


def test_time_before_the_first_step_counts(time: Time) -> None:
    took, _ = run(time, 1.0, [0.1], 1.0, before=30.0)
    assert took == pytest.approx(58.0, abs=1.0)


def test_at_least_one_step_is_made_however_late_it_is(time: Time) -> None:
    clock = Clock(500.0, TrainingSettings(minutes=1.0, warmup_steps=0))
    assert not clock.is_over(0)
    assert clock.progress(0) == 1.0
    assert clock.is_over(1)


def test_progress_never_falls_within_a_steady_run(time: Time) -> None:
    clock = Clock(0, TrainingSettings(minutes=1.0, warmup_steps=0))
    seen = []
    for step in range(100):
        seen.append(clock.progress(step))
        with clock.timing("step"):
            time.now += 0.5
    assert seen[1:] == sorted(seen[1:])


def test_time_left_is_the_rest_of_the_budget(time: Time) -> None:
    clock = Clock(0, TrainingSettings(minutes=2.0, warmup_steps=0))
    time.now += 30
    assert clock.seconds_left(5) == pytest.approx(90)
    time.now += 300
    assert clock.seconds_left(5) == 0
