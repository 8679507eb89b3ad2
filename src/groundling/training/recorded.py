"""A run's history and result as its files have them, checked: whoever reads a line finds in it what its event has."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.config.record import CorpusFacts
from groundling.training.events import (
    Checked,
    Diverged,
    Evaluation,
    Event,
    Finished,
    Notice,
    OutOfMemory,
    Paused,
    Planned,
    RolledBack,
    Sample,
    Saved,
    Skipped,
    Started,
    Step,
)

_KINDS: dict[str, type[Event]] = {
    kind.__name__.lower(): kind
    for kind in (
        Checked, Diverged, Evaluation, Finished, Notice, OutOfMemory, Paused, Planned, RolledBack, Sample, Saved,
        Skipped, Started, Step,
    )
}  # fmt: skip


class _StartedCorpus(CorpusFacts):
    training_tokens: int
    validation_tokens: int


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` or `samples.jsonl`. Raises ValueError that names one which is no event."""
    lines = storage.read_json_lines(path)
    for number, line in enumerate(lines, start=1):
        _check(line, f"line {number} of {path}")
    return lines


def read_result(path: Path) -> dict[str, Any] | None:
    """How a run ended: the fields of `Finished`; None if there is no such file. Raises ValueError if it is damaged."""
    if not path.exists():
        return None
    result: dict[str, Any] = storage.read_json(path)
    _check(result, str(path))
    if result["event"] != "finished":
        raise ValueError(f"{path} is damaged: it is not the end of a run.")
    return result


def _check(line: Any, what: str) -> None:
    import pydantic

    if not isinstance(line, dict) or not isinstance(line.get("event"), str):
        raise ValueError(f"{what} is damaged: it is not an event of a run.")
    if line["event"] not in _KINDS:
        if type(line.get("step", 0)) is not int:
            raise ValueError(f"{what} is damaged: its step is no number.")
        return  # of a newer version; nobody asks for it
    try:
        # Through JSON, where a list is as good as a tuple though everything else is strict.
        _adapter(line["event"]).validate_json(json.dumps(line), strict=True)
        if line["event"] == "started":
            _StartedCorpus.model_validate_json(json.dumps(line["corpus"]))
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(each)[:80] for each in problem["loc"])
        raise ValueError(f"{what} is damaged: {where}: {problem['msg'].lower()}.") from None
    numbers = [value for value in line.values() if isinstance(value, int)]
    if not all(-1 <= number < 2**63 for number in numbers):
        raise ValueError(f"{what} is damaged: it has a number that cannot be.")


@cache
def _adapter(event: str) -> Any:
    import pydantic

    return pydantic.TypeAdapter(_KINDS[event])
