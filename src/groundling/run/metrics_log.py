"""The files of a run's history (metrics.jsonl, samples.jsonl) and result (result.json), validated when read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from groundling import storage
from groundling.config import MOST_TEXTS
from groundling.data.progress import Notice, silent
from groundling.run.record import CorpusFacts, PartFacts
from groundling.storage.safe_read import parse
from groundling.training import events
from groundling.training.events import Event, OutOfMemory, Preparing, Replies, RolledBack, Sample

_EVENTS = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]
_KINDS = {kind.__name__.lower(): kind for kind in _EVENTS if kind not in (Event, Preparing)}


class _StartedPart(PartFacts):
    start: float
    end: float
    training_tokens: int
    validation_tokens: int
    epochs: float


class _StartedCorpus(CorpusFacts):
    training_tokens: int
    validation_tokens: int
    parts: Annotated[list[_StartedPart], Field(max_length=MOST_TEXTS, default_factory=list)]  # type: ignore[assignment]


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` or `samples.jsonl`. Raises ValueError, with the line number, for
    a line that is not an event."""
    lines = storage.read_json_lines(path)
    for number, line in enumerate(lines, start=1):
        _check(line, f"line {number} of {path}")
    return lines


def read_line(content: bytes, what: str) -> dict[str, Any]:
    """One line of a history. Raises ValueError, with `what` it is, if it is not an event."""
    line: dict[str, Any] = parse(content, what)
    _check(line, what)
    return line


def read_result(path: Path) -> dict[str, Any] | None:
    """The fields of `Finished`, or None if there is no such file. Raises ValueError if it is damaged."""
    if not path.exists():
        return None
    result: dict[str, Any] = storage.read_json(path)
    _check(result, str(path))
    if result["event"] != "finished":
        raise ValueError(f"{path} is damaged: it is not the result of a run.")
    return result


@dataclass(frozen=True)
class MetricsLog:
    """A subscriber that writes events to `metrics.jsonl` and `samples.jsonl`, one JSON object per line.

    When training goes back to a checkpoint, the lines of the steps that will be repeated are dropped.
    """

    folder: Path

    def __call__(self, event: Event) -> None:
        if isinstance(event, RolledBack):
            rewind(self.folder, event.to, event.evaluated_step, event.rollbacks + 1)
        elif isinstance(event, OutOfMemory) and event.went_back:
            rewind(self.folder, event.step, event.evaluated_step, event.rollbacks)
        if type(event) in _KINDS.values():
            name = "samples.jsonl" if isinstance(event, Replies | Sample) else "metrics.jsonl"
            storage.append_json(self.folder / name, event.to_dict())


def rewind(folder: Path, step: int, evaluated_step: int, rollbacks: int = 0, notice: Notice = silent) -> None:
    """Drop the lines after the checkpoint from which a run continues, since those steps will be repeated.

    The first `rollbacks` rollbacks, which the checkpoint counts, stay, and so do the steps skipped before them.
    Unreadable lines, which a power cut can leave, are dropped with a notice.
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
            else:
                if _precedes(line, step, evaluated_step, rollbacks):
                    kept += json.dumps(line, ensure_ascii=False) + "\n"
        storage.write_file(folder / name, kept)


def _precedes(line: dict[str, Any], step: int, evaluated_step: int, rollbacks: int) -> bool:
    event = line["event"]
    if event in ("skipped", "rolledback"):
        return bool((line["rollbacks"], line["step"]) <= (rollbacks, step))
    # A generation begins after the checkpoint of the same step.
    limit = evaluated_step if event in ("evaluation", "sample", "replies") else step - (event == "generation")
    # Events without a step (notice) or of a session (started, paused) are not repeated.
    return bool(event in ("started", "notice", "outofmemory") or line.get("step", 0) <= limit)


def _check(line: Any, what: str) -> None:
    """Raise ValueError, with `what` it is, if it is not an event."""
    if not isinstance(line, dict) or not isinstance(line.get("event"), str):
        raise ValueError(f"{what} is damaged: it is not an event of a run.")
    if line["event"] not in _KINDS:  # an event of a newer version, which nothing here uses
        if type(line.get("step", 0)) is not int:
            raise ValueError(f"{what} is damaged: its step is not a number.")
        return
    try:
        # Through JSON, where a list is as good as a tuple though everything else is strict.
        _adapter(line["event"]).validate_json(json.dumps(line), strict=True)
        if line["event"] == "started":
            _StartedCorpus.model_validate_json(json.dumps(line["corpus"]))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(each)[:80] for each in problem["loc"])
        raise ValueError(f"{what} is damaged: {where}: {problem['msg'].lower()}.") from None
    if not all(-1 <= number < 2**63 for number in line.values() if isinstance(number, int)):
        raise ValueError(f"{what} is damaged: one of its numbers is out of range.")


@cache
def _adapter(event: str) -> TypeAdapter[Event]:
    return TypeAdapter(_KINDS[event])
