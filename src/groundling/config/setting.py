"""A setting: a dataclass field with its help text and limits, and the flag that sets it."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any, TypeVar

from groundling.config.limits import Limits

T = TypeVar("T")

WITH_ESCAPES = ("document_separator", "sample_prompt")
"""The settings in which \\n, \\t and \\\\ on the command line stand for a line break, a tab and a backslash."""


def setting(default: T, help: str, limits: Limits | None = None, legacy_default: Any = dataclasses.MISSING) -> T:
    """A dataclass field with its text for `--help`, and the limits of a number.

    A new setting also needs `legacy_default`, the value that runs had before the setting existed. A config.json without
    the setting gets this value, whatever the default is.
    """
    return field(default=default, metadata={"help": help, "limits": limits, "legacy_default": legacy_default})


def flag(name: str) -> str:
    """`n_layer` -> `--n-layer`."""
    return "--" + name.replace("_", "-")


def flags(settings: Any) -> list[str]:
    """The words of a command that give the settings of a group which differ from their defaults."""
    words = list[str]()
    for each in dataclasses.fields(settings):
        name, value = flag(each.name), str(getattr(settings, each.name))
        if each.name in WITH_ESCAPES:
            value = value.replace("\\", "\\\\")
        if value != str(each.default):
            words += [f"{name}={value}"] if value.startswith("-") else [name, value]
    return words


def check_numbers(settings: Any) -> None:
    """Raise ValueError if a setting is out of its limits. None is within all of them."""
    for each in dataclasses.fields(settings):
        allowed, value = each.metadata.get("limits"), getattr(settings, each.name)
        if allowed is not None and value is not None:
            allowed.check(flag(each.name), value)


def require_short(settings: Any, *names: str, most: int = 4096) -> None:
    """Raise ValueError if one of these settings, a text, is longer than that."""
    for name in names:
        length = len(getattr(settings, name) or "")
        if length > most:
            raise ValueError(f"{flag(name)} must have at most {most:,} characters, not {length:,}.")
