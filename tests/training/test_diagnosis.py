"""What the end of a run says, on curves of known kinds."""

from __future__ import annotations

import pytest

from groundling.training.diagnosis import Point, verdict


def curve(validation: list[float], training: list[float]) -> list[Point]:
    return [Point(i * 100, v, t) for i, (v, t) in enumerate(zip(validation, training, strict=True))]


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (curve([4.2, 2.5, 2.0, 1.7], [4.2, 2.6, 2.1, 1.8]), "Still learning"),
        (curve([4.2, 1.9, 1.603, 1.60], [4.2, 2.0, 1.5, 1.45]), "levelled off"),
        (curve([4.2, 1.9, 1.6, 1.75], [4.2, 2.0, 1.5, 1.2]), "Overfitting since step 200"),
        (curve([4.2, 1.9, 1.6, 2.9], [4.2, 2.0, 1.5, 2.8]), "a lower learning rate may help"),
        (curve([4.2], [4.2]), "Too few evaluations"),
    ],
)
def test_a_curve_is_named(points: list[Point], words: str) -> None:
    assert words in verdict(points)
