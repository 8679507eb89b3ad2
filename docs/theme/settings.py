"""Extension of Griffe, which reads the code for the API reference: settings as one table for each class."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

import griffe


class Settings(griffe.Extension):
    """Fields such as `steps: int = setting(2000, "Total number of optimizer steps.")` become rows of a table."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        if not cls.module.path.startswith("groundling.config.") or "dataclass" not in cls.labels or not cls.docstring:
            return
        fields = dataclasses.fields(getattr(import_module(cls.module.path), cls.name))
        rows = [
            f"    {field.name} ({field.type}): {field.metadata['help']}"
            + (f" Default: `{field.default!r}`." if field.default is not None else "")
            for field in fields
            if "help" in field.metadata
        ]
        if rows:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(rows)
