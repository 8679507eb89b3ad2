"""What the tests of a run's page stand on."""

from __future__ import annotations

import pytest
from handmade import Written


@pytest.fixture
def written() -> Written:
    """Two hundred steps with three evaluations; no milestones, no samples."""
    run = Written(steps=200)
    for step in range(1, 201):
        run.step(step, 4.0 - step / 100)
    for step, loss in ((0, 4.2), (100, 3.0625), (200, 2.25)):
        run.evaluation(step, loss)
    return run
