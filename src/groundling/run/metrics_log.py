"""A run's history and result in files. Every line that is read is validated: it has what its event has."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.run.record import CorpusFacts
from groundling.storage.safe_read import parse
from groundling.training import events
from groundling.training.events import Event, OutOfMemory, Preparing, RolledBack, Sample

_EVENTS = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]
_KINDS: dict[str, type[Event]] = {kind.__name__.lower(): kind for kind in _EVENTS if kind not in (Event, Preparing)}


class _StartedCorpus(CorpusFacts):
    training_tokens: int
    validation_tokens: int


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` or `samples.jsonl`. Raises ValueError that names a line which is not an event."""
    lines = storage.read_json_lines(path)
    for number, line in enumerate(lines, start=1):
        _check(line, f"line {number} of {path}")
    return lines


def read_line(content: bytes, what: str) -> dict[str, Any]:
    """A single line of a history. Raises ValueError, naming `what` it is, if it is not an event."""
    line: dict[str, Any] = parse(content, what)
    _check(line, what)
    return line


class MetricsLog:
    """The subscriber that writes a run's history: `metrics.jsonl` and `samples.jsonl`, one JSON object a line.

    When training goes back, the lines of what will be made again are dropped.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, event: Event) -> None:
        if isinstance(event, RolledBack):
            rewind(self._folder, event.to, event.evaluated_step, event.rollbacks + 1)
        elif isinstance(event, OutOfMemory) and event.went_back:
            rewind(self._folder, event.step, event.evaluated_step, event.rollbacks)
        if isinstance(event, Sample):
            storage.append_json(self._folder / "samples.jsonl", event.to_dict())
        elif type(event) in _KINDS.values():
            storage.append_json(self._folder / "metrics.jsonl", event.to_dict())


def rewind(
    folder: Path, step: int, evaluated_step: int, rollbacks: int = 0,
    notice: Callable[[str], None] = lambda sentence: None,
) -> None:  # fmt: skip
    """Drop from a run's history what happened after the checkpoint from which it continues, since it happens again.

    That checkpoint knows of so many `rollbacks`. Those stay, with the steps that were skipped before them. Lines that
    cannot be read, as a power cut may leave them, are dropped too, with a notice.
    """

    def dropped(fault: object) -> None:
        notice(f"{fault} Dropped the line.")

    for name in ("metrics.jsonl", "samples.jsonl"):
        kept = ""
        for line in storage.read_json_lines(folder / name, dropped):
            try:
                _check(line, f"A line of {folder / name}")
            except ValueError as fault:
                dropped(fault)
                continue
            if _precedes(line, step, evaluated_step, rollbacks):
                kept += json.dumps(line, ensure_ascii=False) + "\n"
        storage.write_file(folder / name, kept)


def _precedes(line: dict[str, Any], step: int, evaluated_step: int, rollbacks: int) -> bool:
    event = line["event"]
    if event in ("skipped", "rolledback"):
        return bool((line["rollbacks"], line["step"]) <= (rollbacks, step))
    # A generation begins after the checkpoint of its step.
    limit = evaluated_step if event in ("evaluation", "sample") else step - (event == "generation")
    # What has no step (a notice), or belongs to a session (started, paused), did happen.
    return bool(event in ("started", "notice", "outofmemory") or line.get("step", 0) <= limit)


def read_result(path: Path) -> dict[str, Any] | None:
    """How a run ended: the fields of `Finished`, or None if there is no such file. Raises ValueError if it is
    damaged."""
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
            raise ValueError(f"{what} is damaged: its step is not a number.")
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
        raise ValueError(f"{what} is damaged: one of its numbers is out of range.")


@cache
def _adapter(event: str) -> Any:
    import pydantic

    return pydantic.TypeAdapter(_KINDS[event])
