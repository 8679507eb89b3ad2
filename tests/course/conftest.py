"""Commands of chapters run in this process: a new one would import PyTorch again each time."""

from __future__ import annotations

import pytest

from groundling.__main__ import main


@pytest.fixture(autouse=True)
def commands_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_command(words: list[str]) -> int:
        with pytest.raises(SystemExit) as ended:
            main(words)
        return int(ended.value.code or 0)

    monkeypatch.setattr("groundling.course.lesson.run_command", run_command)
