"""Settings as flags: name, type, default and help come from the dataclasses of `config/`."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

from cyclopts import Group, Parameter

from groundling.cli.app import converted, with_escapes
from groundling.config import (
    GROUPS,
    METHODS,
    PRESETS,
    PROCESSES,
    READING,
    WITH_ESCAPES,
    CorpusSettings,
    MachineSettings,
    Sampling,
    TrainingSettings,
)
from groundling.config.methods import training_defaults

_ALIASES = {"accumulate": "--gradient-accumulation-steps"}
_GROUPS: dict[str, Any] = {
    **GROUPS, **METHODS, "sampling": Sampling,
    "reading": CorpusSettings, "data": CorpusSettings, "tuning": TrainingSettings, "processes": MachineSettings,
}  # fmt: skip
_SUBSETS: dict[str, Sequence[str]] = {
    "reading": READING,
    "processes": PROCESSES,
    "data": ("glob", "format", "field", "val_fraction"),
    "tuning": (
        "steps", "minutes", "batch_size", "accumulate", "learning_rate", "schedule", "warmup_steps",
        "final_lr_fraction", "weight_decay", "beta1", "beta2", "grad_clip", "eval_every", "patience",
        "checkpoint_every", "keep_checkpoints", "sample_every", "log_every", "seed",
    ),
}  # fmt: skip
"""The settings of a group that a command has, where it does not have all of them."""
_CHOSEN = ("steps", "warmup_steps", "eval_every", "checkpoint_every", *training_defaults("sft", 1, False))
"""Settings whose default depends on the method."""
_HELP = {
    "batch_size": "Micro-batch size: examples, pairs or replies per forward pass.",
    "minutes": "Time budget from the command to the last saved byte, instead of a number of steps.",
    "seed": "Random seed for the order of the examples and for replies.",
    "val_fraction": "Share of the prompts to keep for validation, chosen by a hash.",
    "field": "Field of the messages, if it has an unusual name.",
    "glob": "Which files of a folder to read, such as '*.jsonl'. Default: all.",
}
"""What some settings mean for the commands that train a run further."""
_HIDDEN = {"distill": ("teacher",)}
"""Settings that are arguments of the command."""


def with_settings(*groups: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for every setting of the named groups. It gets those that the user set as keywords."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        flags = [flag for order, name in enumerate(groups) for flag in _flags(name, order + 10)]
        command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
        return command

    return decorate


def _flags(name: str, sort_key: int) -> list[inspect.Parameter]:
    """A parameter for every setting of a group."""
    group, types = Group(name.capitalize(), sort_key=sort_key), get_type_hints(_GROUPS[name])
    parameters = []
    for field in dataclasses.fields(_GROUPS[name]):
        chosen = _SUBSETS.get(name, (field.name,))
        if "help" not in field.metadata or field.name not in chosen or field.name in _HIDDEN.get(name, ()):
            continue
        own = _HELP.get(field.name) if name in ("tuning", "data") else None
        parameter = Parameter(
            help=f"{own or field.metadata['help']} {_default(name, field)}".rstrip(), group=group, show_default=False,
            negative_bool="no-", allow_leading_hyphen=name == "sampling" or field.name in WITH_ESCAPES,
            alias=_ALIASES.get(field.name),
            converter=with_escapes if field.name in WITH_ESCAPES else converted,
        )  # fmt: skip
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
                annotation=Annotated[types[field.name], parameter],
            )
        )  # fmt: skip
    return parameters


def _default(group: str, field: dataclasses.Field[Any]) -> str:
    """`[0.1]`, or `[nano 4, workshop 6]` where the presets differ."""
    if field.default in (None, "") or (group == "tuning" and field.name in _CHOSEN):
        return ""
    if group not in ("model", "training"):
        return f"[{field.default}]"
    values = {name: getattr(getattr(PRESETS[name], group), field.name) for name in ("nano", "laptop", "workshop")}
    if len(set(values.values())) == 1:
        return f"[{json.dumps(field.default)}]"
    return "[" + ", ".join(f"{name} {_shown(value)}" for name, value in values.items()) + "]"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
