"""Settings as flags: name, type, default and help come from the dataclasses of `config/`."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Collection
from typing import Annotated, Any, get_type_hints

from cyclopts import Group, Parameter

from groundling.config import GROUPS, PRESETS, Sampling

_ALIASES = {"accumulate": "--gradient-accumulation-steps"}
_GROUPS: dict[str, Any] = {**GROUPS, "sampling": Sampling}


def with_settings(command: Callable[..., Any], groups: Collection[str] = GROUPS) -> Callable[..., Any]:
    """Give `command` a flag for every setting of the named groups, with type, help and default."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = get_type_hints(command, include_extras=True)
    parameters = [p.replace(annotation=hints[p.name]) for p in own]
    for order, name in enumerate(groups):
        group = Group(name.capitalize(), sort_key=order + 10)
        types = get_type_hints(_GROUPS[name])
        for field in dataclasses.fields(_GROUPS[name]):
            if "help" not in field.metadata:
                continue
            described = f"{field.metadata['help']} {_default(name, field)}".rstrip()
            parameter = Parameter(
                help=described, group=group, show_default=False, allow_leading_hyphen=name == "sampling",
                alias=_ALIASES.get(field.name),
            )  # fmt: skip
            annotation: Any = Annotated[types[field.name] | None, parameter]
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given: the others are None."""
    return {name: value for name, value in settings.items() if value is not None}


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
