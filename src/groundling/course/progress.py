"""How far a learner is: one JSON file in the course's folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from groundling import storage

FILE = "progress.json"


@dataclass
class Progress:
    text: str = "shakespeare"
    guesses: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)  # names of exercises


def read(folder: Path = Path()) -> Progress:
    """The progress in a course's folder. Raises `ValueError` if the file is damaged."""
    path = folder / FILE
    if not path.exists():
        return Progress()
    content = storage.read_json(path)
    try:
        known = Progress(**content)
    except TypeError:
        known = None
    kinds = {"text": str, "guesses": dict, "figures": dict, "passed": list}
    if known is None or any(not isinstance(getattr(known, name), kind) for name, kind in kinds.items()):
        raise ValueError(f"{path} is no progress of a course. Move it away to start again.")
    return known


def write(known: Progress, folder: Path = Path()) -> None:
    storage.write_json(folder / FILE, asdict(known))
