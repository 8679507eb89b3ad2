"""Every command and its options, from the app itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from groundling.cli import app


def commands(parent: Any = app, before: str = "") -> Iterator[tuple[str, Any]]:
    for name in parent:
        if not name.startswith("-"):
            command = parent[name]
            yield f"{before}{name}", command
            yield from commands(command, f"{before}{name} ")


def options() -> Iterator[tuple[str, Any]]:
    """The command, and the argument as cyclopts has it, which may be an option."""
    for name, command in commands():
        if command.default_command is not None:
            for argument in command.assemble_argument_collection():
                yield name, argument
