"""What is faster is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from groundling.inference.speed_selector import SpeedSelector


def spent(pace: SpeedSelector, steps: int, cost: Callable[[bool], float]) -> tuple[int, float]:
    """How often it was taken in so many steps, and the seconds of all."""
    taken, seconds = 0, 0.0
    for _ in range(steps):
        took = pace.takes("a")
        pace.record("a", took, cost(took))
        taken += took
        seconds += cost(took)
    return taken, seconds


@pytest.mark.parametrize(("seconds", "pays"), [(0.05, True), (0.2, False), (0.09, True), (0.11, False)])
def test_the_faster_way_is_taken_and_now_and_then_the_other(seconds: float, pays: bool) -> None:
    taken, total = spent(SpeedSelector(), 5000, lambda took: seconds if took else 0.1)
    assert (taken > 4800) == pays and 20 <= taken <= 4980
    assert total < 1.02 * 5000 * min(seconds, 0.1)


def test_what_changed_is_found() -> None:
    pace = SpeedSelector()
    spent(pace, 2000, lambda took: 0.1 if took else 0.2)
    spent(pace, 1000, lambda took: 0.2 if took else 0.1)
    assert spent(pace, 100, lambda took: 0.2 if took else 0.1)[0] < 10
    spent(pace, 1000, lambda took: 0.1 if took else 0.2)
    assert spent(pace, 100, lambda took: 0.1 if took else 0.2)[0] > 90


def test_what_rested_is_given_time() -> None:
    pace, before = SpeedSelector(), False

    def cost(took: bool) -> float:  # the first step after another one takes longer
        nonlocal before
        cold, before = took and not before, took
        return (0.3 if cold else 0.05) if took else 0.1

    assert spent(pace, 2000, cost)[0] > 1900


def test_what_is_far_slower_is_hardly_tried() -> None:
    """Threads on a machine that is busy with something else: hundreds of times as slow."""
    taken, total = spent(SpeedSelector(), 10_000, lambda took: 0.8 if took else 0.002)
    assert taken < 4 and total < 24


def test_tasks_are_apart() -> None:
    pace = SpeedSelector()
    for task, seconds in (("a", 0.05), ("b", 0.2)) * 300:
        took = pace.takes(task)
        pace.record(task, took, seconds if took else 0.1)
    assert pace.takes("a") and not pace.takes("b")
