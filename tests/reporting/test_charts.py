"""Curves in few points: nothing that matters is lost. And pictures that are the same everywhere."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundling.reporting.charts import Chart, Curve, Line, drawn, thin
from groundling.reporting.console import Console


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


PLOT = """
from pathlib import Path
from groundling.reporting.charts import _ticks
from groundling.reporting.plot import plot_curves
lines = [{"event": "step", "step": n, "loss": 3 / n} for n in range(1, 9)]
plot_curves({"x": lines}, Path("x.png"))
print(_ticks(0, 9.7, 5))
"""


def test_a_picture_is_the_same_whatever_the_environment_says(tmp_path: Path) -> None:
    results = []
    for name, backend in (("plain", ""), ("odd", "module://nowhere"), ("unknown", "foo")):
        (folder := tmp_path / name).mkdir()
        if backend:
            (folder / "matplotlibrc").write_text("text.usetex: True\naxes.autolimit_mode: round_numbers\nno: x")
        environment = os.environ | ({"MPLBACKEND": backend} if backend else {})
        done = subprocess.run([sys.executable, "-c", PLOT], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(((folder / "x.png").read_bytes(), done.stdout))
    assert results[0] == results[1] == results[2] and results[0][1] == "[0.0, 2.0, 4.0, 6.0, 8.0]\n"


@pytest.mark.parametrize(("columns", "width"), [("0", 80), ("²", 80), ("", 80), ("100", 100), (None, 80)])
def test_a_console_is_wider_than_nothing(columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert Console(io.StringIO()).out.width == width
