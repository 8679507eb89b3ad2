"""All settings of a run: a preset with overrides, checked, and converted to JSON and back without loss."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from typing import Any

from groundling.config.methods import METHODS, training_defaults
from groundling.config.mix import Mix
from groundling.config.presets import DEFAULT_PRESET, PRESETS
from groundling.config.setting import flag, flags
from groundling.config.settings import (
    GROUPS,
    CorpusSettings,
    MachineSettings,
    ModelSettings,
    TrainingSettings,
    setting_fields,
)

MINUTES_OR_STEPS = "Use --minutes or --steps, not both."
_PRETRAINING = ("init_from", "generations", "weight_average", "sample_prompt", "matrix_learning_rate")
"""Training settings that post-training does not have."""
_NEEDED: dict[str, tuple[str, Any]] = {
    "adapter_kind": ("adapter", None), "adapter_alpha": ("adapter", None), "level": ("task", None),
    "tool": ("task", None), "gamma": ("loss_type", "simpo"), "label_smoothing": ("loss_type", "sigmoid"),
    "beta": ("divergence", "jsd"),
}  # fmt: skip
"""Settings of methods that do nothing without another one (None: with any value of it)."""
_MOST_ERRORS = 5  # in one message


@dataclass(frozen=True)
class Config:
    """Everything that determines a run, except the text itself."""

    corpus: str | tuple[str, ...]
    """Address of the text, or addresses of its parts: built-in names, absolute paths, or file URLs."""
    preset: str
    text: CorpusSettings
    model: ModelSettings
    training: TrainingSettings
    machine: MachineSettings
    task: str = "pretraining"
    method: Any = None
    """The settings of a post-training task, one of `METHODS`."""
    mix: Mix | None = None
    """The weights of the texts, in the order of their addresses, if a run mixes several."""

    @staticmethod
    def build(
        corpus: str | tuple[str, ...], preset: str | None = None, task: str = "pretraining", **settings: Any
    ) -> Config:
        """The preset's values, overridden by `settings`: any field of the four groups, by name.

        Unless `warmup_steps` is given, the preset's warm-up is shortened to at most a fifth of `steps`. Otherwise
        `--steps 120` might never reach its learning rate.

        Raises ValueError that names the flag, for unknown names, wrong types and impossible combinations.
        """
        preset = preset or DEFAULT_PRESET
        if preset not in PRESETS:
            raise ValueError(f"There is no preset {preset!r}. Choose one of: {', '.join(PRESETS)}.")
        if settings.get("minutes") and "steps" in settings:
            raise ValueError(MINUTES_OR_STEPS)
        # A preset has no text and machine settings.
        chosen = {name: getattr(PRESETS[preset], name, group()) for name, group in GROUPS.items()}
        groups = _overridden({name: dataclasses.asdict(group) for name, group in chosen.items()}, settings)
        training = groups["training"]
        if "warmup_steps" not in settings and isinstance(training["steps"], Integral):  # NumPy's integers too
            training["warmup_steps"] = min(training["warmup_steps"], max(int(training["steps"]) // 5, 0))
        return Config.from_dict({"corpus": corpus, "preset": preset, "task": task, "method": None, **groups})

    @staticmethod
    def tuning(
        task: str, corpus: str | tuple[str, ...], parent: Config, init_from: str | None, /, **settings: Any
    ) -> Config:
        """The configuration of a post-training task on the model of `parent`, whose weights are in `init_from` (None: a
        new model): the values that suit the method, overridden by `settings`, as in `build`."""
        if settings.get("minutes") and "steps" in settings:
            raise ValueError(MINUTES_OR_STEPS)
        fixed = {*_names(ModelSettings), "tokenizer", "vocab_size", *_PRETRAINING} & settings.keys()
        if fixed:
            raise ValueError(f"{', '.join(map(flag, sorted(fixed)))} cannot be set for {task}: the model is given.")
        model = dataclasses.replace(parent.model, dropout=0.0)
        training = training_defaults(task, model.n_embd, bool(settings.get("adapter")))
        chosen: dict[str, Any] = {name: group() for name, group in GROUPS.items()}
        chosen |= {"model": model, "method": METHODS[task]()}
        groups = {name: dataclasses.asdict(group) for name, group in chosen.items()}
        groups["training"] |= training | {"warmup_steps": 0, "init_from": init_from}
        groups["machine"]["compile"] = "off"  # the widths of batches differ, and each would be compiled
        groups = _overridden(groups, settings)
        config = Config.from_dict({"corpus": corpus, "preset": parent.preset, "task": task, **groups})
        for name, (other, needed) in _NEEDED.items():
            value = getattr(config.method, other, needed)
            if settings.get(name) and (value != needed if needed else not value):
                raise ValueError(f"{flag(name)} does nothing without {flag(other)}{f' {needed}' if needed else ''}.")
        return config

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`.

        A setting that is newer than `values` gets its `legacy_default` (see `setting`). Raises ValueError that names
        the setting if one is unknown, missing or has a wrong type.
        """
        import pydantic

        values = _with_legacy_defaults(values)
        method = values.pop("method", None) if isinstance(values, dict) else None
        try:
            # Through JSON: in strict mode, pydantic accepts a mapping for a dataclass only there.
            config: Config = _adapter("").validate_json(json.dumps(values, default=_plain))
            if config.task not in METHODS:
                return config
            chosen = _adapter(config.task).validate_json(json.dumps(method, default=_plain))
            return dataclasses.replace(config, method=chosen)
        except pydantic.ValidationError as error:
            raise ValueError(" ".join(map(_message, error.errors()[:_MOST_ERRORS]))) from None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The addresses of the text, one or more."""
        return (self.corpus,) if isinstance(self.corpus, str) else self.corpus

    @property
    def text_arguments(self) -> list[str]:
        """The arguments of a command for the same text, as the same tokens."""
        text = self.text
        if text.tokenizer != "bpe":
            text = dataclasses.replace(text, vocab_size=CorpusSettings.vocab_size)  # unused
        return [*self.inputs, *flags(text)]

    @property
    def train_arguments(self) -> list[str]:
        """As `text_arguments`, for a command that trains: with the weights of a mix."""
        words = self.text_arguments
        if self.mix is None:
            return words
        mixed = [f"{path}={weight}" for path, weight in zip(self.inputs, self.mix.words, strict=True)]
        return ["--mix", *mixed, *words[len(self.inputs) :]]

    @property
    def values(self) -> dict[str, Any]:
        """All settings by name, without where the text is."""
        groups = self.to_dict()
        settings = {name: value for group in (*GROUPS, "method") for name, value in (groups[group] or {}).items()}
        return settings | {"mix": self.mix}

    @property
    def tokens_per_step(self) -> int:
        return self.training.batch_size * self.training.accumulate * self.model.block_size

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. Most runs have no mix, and then there is no entry for it."""
        values = dataclasses.asdict(self)
        return values if self.mix is not None else {name: value for name, value in values.items() if name != "mix"}


def _plain(value: Any) -> Any:
    if getattr(value, "ndim", None) == 0:  # a NumPy number
        return value.item()
    return {type(value).__name__: repr(value)}  # no setting can be a dict, but the text alone would pass as a `str`


def _with_legacy_defaults(values: Any) -> Any:
    """Raises ValueError if a setting is missing that has no legacy default. pydantic would fill in the present default,
    which may differ from what the run used."""
    if not isinstance(values, dict):
        return values  # pydantic rejects it
    values = {"task": "pretraining", "method": None, "mix": None} | values
    missing = [f.name for f in dataclasses.fields(Config) if f.name not in values]
    method = METHODS.get(values["task"]) if isinstance(values["task"], str) else None
    for name, group in (GROUPS | ({"method": method} if method else {})).items():
        if isinstance(values.get(name), dict):
            legacy = {f.name: f.metadata["legacy_default"] for f in dataclasses.fields(group)}
            complete = legacy | values[name]
            missing += [key for key, value in complete.items() if value is dataclasses.MISSING]
            values[name] = complete
    if missing:
        raise ValueError(" ".join(f"The setting {name!r} is missing." for name in missing[:_MOST_ERRORS]))
    return values


@cache
def _adapter(task: str) -> Any:
    """Checks the settings of a method, or of all else for `task` "". pydantic checks types and unknown names, and the
    dataclasses the limits."""
    import pydantic

    rules = pydantic.ConfigDict(extra="forbid", strict=True)
    kind = METHODS.get(task, Config)
    groups: list[Any] = [*GROUPS.values(), Mix, kind]
    for each in groups:
        each.__pydantic_config__ = rules
    return pydantic.TypeAdapter(kind)


def _names(group: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(group)]


def _overridden(groups: dict[str, dict[str, Any]], settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The values of each group, with `settings` in place. Raises ValueError for a name that no group has."""
    for name, value in settings.items():
        group = next((values for values in groups.values() if name in values), None)
        if group is None:
            known = [known for values in groups.values() for known in values]
            raise ValueError(f"There is no setting {name!r}{did_you_mean(name, known)}.")
        group[name] = value
    return groups


def _message(problem: Any) -> str:
    """One of pydantic's errors in our words."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    name = str(problem["loc"][-1])[:80] if problem["loc"] else "settings"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"There is no setting {name!r}{did_you_mean(name, list(setting_fields()))}."
    if problem["type"] == "json_invalid":
        return "A setting, or the name of the corpus, is not valid Unicode."
    given = json.dumps(problem["input"], default=repr)
    return f"{flag(name)} {given if len(given) <= 80 else given[:77] + '...'}: {problem['msg'].lower()}."


def did_you_mean(word: str, known: list[str]) -> str:
    """` (did you mean 'x'?)` if something known is similar to `word`, else an empty string."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
