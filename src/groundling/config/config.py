"""All settings of a run together: laid over a preset, checked, and to JSON and back without a loss."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from typing import Any

from groundling.config.presets import DEFAULT_PRESET, PRESETS
from groundling.config.settings import (
    GROUPS,
    CorpusSettings,
    MachineSettings,
    ModelSettings,
    TrainingSettings,
    flag,
    setting_fields,
)

MINUTES_OR_STEPS = "--minutes and --steps exclude each other: say how long, or how many steps."
_TOLD = 5  # mistakes at once


@dataclass(frozen=True)
class Config:
    """All that decides a run, apart from the text itself."""

    corpus: str
    preset: str
    text: CorpusSettings
    model: ModelSettings
    training: TrainingSettings
    machine: MachineSettings
    task: str = "pretraining"

    @staticmethod
    def build(corpus: str, preset: str | None = None, task: str = "pretraining", **settings: Any) -> Config:
        """The preset's values with `settings` (any field of the four groups, by name) laid over them.

        A preset's warm-up longer than a fifth of `steps` is shortened to that, unless `warmup_steps` is given:
        `--steps 120` is a request for a short run, not for one that never reaches its learning rate.

        Raises ValueError, naming the flag, for unknown names, wrong types and impossible combinations.
        """
        preset = preset or DEFAULT_PRESET
        if preset not in PRESETS:
            raise ValueError(f"There is no preset {preset!r}; the presets are {', '.join(PRESETS)}.")
        if settings.get("minutes") and "steps" in settings:
            raise ValueError(MINUTES_OR_STEPS)
        base = PRESETS[preset]
        groups: dict[str, dict[str, Any]] = {
            "text": dataclasses.asdict(CorpusSettings()),
            "model": dataclasses.asdict(base.model),
            "training": dataclasses.asdict(base.training),
            "machine": dataclasses.asdict(MachineSettings()),
        }
        for name, value in settings.items():
            group = next((values for values in groups.values() if name in values), None)
            if group is None:
                raise ValueError(f"There is no setting {name!r}{did_you_mean(name, list(setting_fields()))}.")
            group[name] = value
        training = groups["training"]
        if "warmup_steps" not in settings and isinstance(training["steps"], Integral):  # NumPy's integers too
            training["warmup_steps"] = min(training["warmup_steps"], max(int(training["steps"]) // 5, 0))
        return Config.from_dict({"corpus": corpus, "preset": preset, "task": task, **groups})

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`; strict: an unknown, missing or mistyped setting is a ValueError that names it.

        What was written before a setting existed has the value that says what runs did then: see `setting`.
        """
        import pydantic

        # pydantic would give what is missing its default, which need not be the value that a run was made with.
        values = _with_older(values)
        missing = _missing(values)
        if missing:
            raise ValueError(" ".join(f"The setting {name!r} is missing." for name in missing[:_TOLD]))
        try:
            # Through JSON, where a mapping is as good as a dataclass though everything else is strict.
            return _config_adapter().validate_json(json.dumps(values, default=_plain))
        except pydantic.ValidationError as error:
            raise ValueError(" ".join(map(_sentence, error.errors()[:_TOLD]))) from None

    @property
    def tokens_per_step(self) -> int:
        return self.training.batch_size * self.training.accumulate * self.model.block_size

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _plain(value: Any) -> Any:
    if getattr(value, "ndim", None) == 0:  # NumPy's numbers are numbers
        return value.item()
    return {type(value).__name__: repr(value)}  # what no setting can be; the text alone would pass for a `str`


def _with_older(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    values = {"task": "pretraining"} | values
    older = {
        name: {
            f.name: value
            for f in dataclasses.fields(group)
            if (value := f.metadata["before"]) is not dataclasses.MISSING
        }
        for name, group in GROUPS.items()
    }
    return {
        name: older[name] | value if name in older and isinstance(value, dict) else value
        for name, value in values.items()
    }


def _missing(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return []  # pydantic says so
    absent = [field.name for field in dataclasses.fields(Config) if field.name not in values]
    groups = [(group, values[name]) for name, group in GROUPS.items() if isinstance(values.get(name), dict)]
    return absent + [f.name for group, given in groups for f in dataclasses.fields(group) if f.name not in given]


@cache
def _config_adapter() -> Any:
    # pydantic checks types, required and unknown names; the limits are the dataclasses' own.
    import pydantic

    rules = pydantic.ConfigDict(extra="forbid", strict=True)
    for kind in (*GROUPS.values(), Config):
        setattr(kind, "__pydantic_config__", rules)  # noqa: B010  (pydantic's own name for it)
    return pydantic.TypeAdapter(Config)


def _sentence(problem: Any) -> str:
    """One pydantic problem in our words."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    name = str(problem["loc"][-1])[:80] if problem["loc"] else "settings"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"There is no setting {name!r}{did_you_mean(name, list(setting_fields()))}."
    if problem["type"] == "json_invalid":
        return "A text among the settings, or the name of the corpus, is not valid Unicode."
    given = json.dumps(problem["input"], default=repr)
    return f"{flag(name)} {given if len(given) <= 80 else given[:77] + '...'}: {problem['msg'].lower()}."


def did_you_mean(word: str, known: list[str]) -> str:
    """` (did you mean 'x'?)` where something known is near to `word`, else nothing."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
