"""Disks that misbehave: one that ends the process at an operation, one that fails there, one that writes a log."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from groundling import storage

OPERATIONS = [name for name in vars(storage.Disk) if not name.startswith("_")]
HALVES = ("write", "fill")
"""Those of which a half can be done."""
Perform = Callable[[], None]


class Scripted(storage.Disk):
    """Lets `perform` decide what becomes of each operation."""

    def __init__(self) -> None:
        self.count = 0

    def perform(self, name: str, arguments: tuple[Any, ...], really: Perform) -> None:
        raise NotImplementedError


def _scripted(name: str) -> Callable[..., None]:
    def operation(self: Scripted, *arguments: Any) -> None:
        self.count += 1
        self.perform(name, arguments, partial(getattr(storage.Disk, name), self, *arguments))

    return operation


for _name in OPERATIONS:
    setattr(Scripted, _name, _scripted(_name))


def half(name: str, arguments: tuple[Any, ...]) -> None:
    """Do half of a write, and nothing of what is done in one piece."""
    if name == "write":
        path, content = arguments
        storage.Disk().write(path, content[: len(content) // 2])
    elif name == "fill":
        path, write = arguments
        write(path)
        os.truncate(path, path.stat().st_size // 2)


class Killing(Scripted):
    """Ends the process, as the kernel or a user would, before operation `at` or in the midst of it."""

    def __init__(self, at: int, midway: bool = False) -> None:
        super().__init__()
        self.at, self.midway = at, midway

    def perform(self, name: str, arguments: tuple[Any, ...], really: Perform) -> None:
        if self.count == self.at:
            if self.midway:
                half(name, arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        really()


class Failing(Scripted):
    """Raises `error` at operation `at`, of a write after the half of it, and at `times` - 1 later ones."""

    def __init__(self, error: int, at: int, times: int = 1) -> None:
        super().__init__()
        self.error, self.at, self.times = error, at, times
        self.failed: list[str] = []

    def perform(self, name: str, arguments: tuple[Any, ...], really: Perform) -> None:
        if self.at <= self.count < self.at + self.times:
            half(name, arguments)
            self.failed.append(name)
            raise OSError(self.error, os.strerror(self.error), str(arguments[0]))
        really()


class Logging(Scripted):
    """Does everything, and keeps a log of it: name, path and what else there is to know."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, Path, Any]] = []

    def perform(self, name: str, arguments: tuple[Any, ...], really: Perform) -> None:
        really()
        path, *rest = arguments
        detail = path.read_bytes() if name == "fill" else rest[0] if rest else None
        self.log.append((name, path, detail))
