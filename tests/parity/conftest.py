"""Comparisons with TRL. They run where it is installed, and print what they measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(params=["gpt2", "qwen3"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    from both import Both

    return Both(request.param, tmp_path)


@pytest.fixture
def record(record_property: Any) -> Any:
    return record_property


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The rows of docs/parity.md: for each method, the largest differences over all its tests."""
    largest: dict[str, list[float]] = {}
    for report in [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]:
        for name, value in report.user_properties:
            if name == "parity" and report.when == "call":
                method, _, *differences = value
                largest[method] = [max(pair) for pair in zip(largest.get(method, [0, 0]), differences, strict=True)]
    if largest:
        terminalreporter.section("parity: loss, relative gradient")
    for method, (loss, gradient) in largest.items():
        terminalreporter.write_line(f"| {method} | {loss:.1e} | {gradient:.1e} |")
