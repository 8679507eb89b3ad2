"""The settings of `config/` as flags: name, type, default and help are taken from the dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Collection
from typing import Annotated, Any, get_type_hints

from cyclopts import Group, Parameter

from groundling.config import GROUPS, PRESETS


def with_settings(verb: Callable[..., Any], groups: Collection[str] = GROUPS) -> Callable[..., Any]:
    """Give `verb` a flag for every setting of `config/` (or of the named groups), with type, help and default."""
    own = [p for p in inspect.signature(verb).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = get_type_hints(verb, include_extras=True)
    parameters = [p.replace(annotation=hints[p.name]) for p in own]
    for order, (name, settings) in enumerate((name, GROUPS[name]) for name in groups):
        group = Group(name.capitalize(), sort_key=order + 10)
        types = get_type_hints(settings)
        for field in dataclasses.fields(settings):
            described = f"{field.metadata['help']} {_default(name, field)}".rstrip()
            parameter = Parameter(help=described, group=group, show_default=False)
            annotation: Any = Annotated[types[field.name] | None, parameter]
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in parameters}
    return verb


def _default(group: str, field: dataclasses.Field[Any]) -> str:
    """`[0.1]`, or `[nano 4, workshop 6]` where the presets differ."""
    if field.default is None:
        return ""
    if group not in ("model", "training"):
        return f"[{field.default}]"
    values = {name: getattr(getattr(PRESETS[name], group), field.name) for name in ("nano", "laptop", "workshop")}
    if len(set(values.values())) == 1:
        return f"[{json.dumps(field.default)}]"
    return "[" + ", ".join(f"{name} {_shown(value)}" for name, value in values.items()) + "]"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
