"""Curves in few points: nothing that matters is lost."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from groundling.reporting.charts import Chart, Curve, Line, drawn, thin


def chart(curve: Curve, **more: Any) -> Chart:
    return Chart("loss", "Loss", "nats", [curve], "said", "{:.3g}".format, **more)


def test_a_short_curve_is_left_as_it_is() -> None:
    x, y = np.arange(50.0), np.random.default_rng(0).normal(size=50)
    assert all(np.array_equal(a, b) for a, b in zip(thin(x, y), (x, y), strict=True))


def test_a_long_curve_keeps_its_ends_and_every_spike() -> None:
    x = np.arange(1.0, 100_001)
    y = 1 + np.random.default_rng(0).normal(scale=0.01, size=len(x))
    y[[31_415, 92_653]] = 9.0, -7.0
    thin_x, thin_y = thin(x, y)
    assert 400 <= len(thin_x) <= 802
    assert (thin_x[0], thin_x[-1]) == (1, 100_000)
    assert {31_416.0, 92_654.0} <= set(thin_x)
    assert np.all(np.diff(thin_x) > 0)
    assert np.array_equal(thin_y, y[thin_x.astype(int) - 1])


def test_places_are_those_of_the_values() -> None:
    shown = drawn(chart(Curve("a", "validation", [0, 50, 100], [4.0, 3.0, 2.0]), low=1.0, high=4.0), 100)
    assert shown is not None
    path, dots = shown["curves"][0]["path"], shown["curves"][0]["dots"]
    points = [tuple(map(float, point)) for point in re.findall(r"[ML](\S+) ([\d.]+)", path)]
    span = 3 * 1.04  # a little room above
    expected = [(x, 1000 * (1 + span - y) / span) for x, y in ((0, 4.0), (500, 3.0), (1000, 2.0))]
    assert points == [(x, pytest.approx(y, abs=0.1)) for x, y in expected]
    assert dots.count("h0") == 3
    for tick in shown["up"]:
        assert tick["top"] == pytest.approx(100 * (1 + span - float(tick["label"])) / span, abs=0.01)
    assert [tick["label"] for tick in shown["across"]] == ["0", "25", "50", "75", "100"]
    assert shown["readings"] == [{"name": "a", "x": [0, 50, 100], "y": ["4", "3", "2"]}]


def test_what_is_not_finite_is_left_out() -> None:
    shown = drawn(chart(Curve("a", "raw", [1, 2, 3], [2.0, float("nan"), 1.0])), 3)
    assert shown is not None
    assert shown["curves"][0]["path"].count("L") == 1
    assert drawn(chart(Curve("a", "raw", [1], [float("inf")])), 1) is None
    assert drawn(chart(Curve("a", "raw", [], [])), 1) is None


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [0.0]])
def test_a_single_value_can_be_drawn(values: list[float]) -> None:
    shown = drawn(chart(Curve("a", "validation", list(range(len(values))), values)), 1)
    assert shown is not None
    assert "nan" not in str(shown)
    assert "inf" not in str(shown)


def test_labels_do_not_lie_on_each_other() -> None:
    lines = [Line(4.0, "chance"), Line(1.9, "4-gram"), Line(1.85, "5-gram")]
    shown = drawn(chart(Curve("a", "validation", [0, 1], [3.0, 2.5]), lines=lines), 1)
    assert shown is not None
    places = {line["label"]: (line["top"], line["label_top"]) for line in shown["lines"]}
    assert places.keys() == {"chance", "4-gram", "5-gram"}
    assert all(0 < top < 100 for top, _ in places.values())  # the axis is long enough for them
    assert places["5-gram"][0] == places["5-gram"][1]
    assert places["5-gram"][1] - places["4-gram"][1] == pytest.approx(4.5)
