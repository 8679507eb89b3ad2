"""A run's record, `config.json`: its settings, text, machine and versions. It is validated when read, since it may be a
stranger's. Only `RunFolder.update` and `RunFolder.create` write it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from groundling import __version__
from groundling.config import MOST_TEXTS, Config, did_you_mean
from groundling.data.fingerprint import MOST_FILES

FORMAT = 1
"""Increased when older versions can no longer read new records."""

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Text = Annotated[str, Field(max_length=4096)]


def _config(value: Any) -> Config:
    return value if isinstance(value, Config) else Config.from_dict(value)


_Settings = Annotated[Config, PlainValidator(_config), PlainSerializer(Config.to_dict)]


class NewerVersion(ValueError):
    """Only a newer version can read this record."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DocumentFacts(_Part):
    """A document of the text: its path below the text's address, its size in bytes, and the SHA-256 of its content."""

    name: _Text
    bytes: _Count
    sha256: _Text


class PartFacts(_Part):
    """One of several texts that a run mixes. Its weight is in the settings."""

    name: _Text
    fingerprint: _Text
    documents: _Count
    characters: _Count


class CorpusFacts(_Part):
    """The text that a run is trained on, from the step `since` on."""

    name: _Text
    fingerprint: _Text
    documents: _Count
    characters: _Count
    vocab_size: _Count
    tokenizer: _Text
    contents: Annotated[list[DocumentFacts], Field(max_length=MOST_FILES)] = []
    parts: Annotated[list[PartFacts], Field(max_length=MOST_TEXTS)] = []
    """The texts of a mix."""
    since: _Count = 0


class ModelFacts(_Part):
    """A run whose weights this one started from, or uses: its name and folder then, the step, the SHA-256 of the
    weights, and what it was trained on."""

    run: _Text
    folder: _Text
    task: _Text
    step: _Count
    weights: _Text
    corpus: _Text


class MachineFacts(_Part):
    """What `Machine.describe` gave when the run began."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda|mps)(:[0-9]{1,3})?$")]
    dtype: Literal["float32", "bfloat16", "float16"]
    compile: Literal["auto", "on", "off"]
    threads: Annotated[int, Field(ge=0, le=10_000)]
    reasons: Annotated[list[_Text], Field(max_length=100)]
    evaluation_batch: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class RunRecord(_Part):
    """Everything that decides a run's result, and where the run came from."""

    format: int
    created: Annotated[_Text, AfterValidator(lambda text: datetime.fromisoformat(text) and text)]
    requested: _Settings
    """The settings that were asked for. The same command asks for the same ones."""
    settings: _Settings
    """The settings in use, after planning."""
    corpus: CorpusFacts
    machine: MachineFacts
    versions: dict[_Text, _Text]
    track: Annotated[list[_Text], Field(max_length=10)] = []
    former_texts: Annotated[list[CorpusFacts], Field(max_length=1000)] = []
    """The texts before each `--accept-changed-text`."""
    lineage: Annotated[list[ModelFacts], Field(max_length=1000)] = []
    """The runs that it descends from, oldest first. The last one is its parent."""
    others: dict[_Text, ModelFacts] = {}
    """Other runs whose weights it uses: a `teacher`, or a `reward` model."""
    imported: dict[_Text, _Text] | None = None
    """Where imported weights came from."""
    bits: dict[_Text, _Text] = {}
    """What the last digits of results depend on, in the latest session; see `machine.bits`."""
    extended_at: _Count | None = None
    """The step at which the run was last given a new end."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. Entries that were never set are omitted."""
        return self.model_dump(exclude_unset=True)

    @staticmethod
    def read(value: Any, what: str) -> RunRecord:
        """Validate the content of a config.json. Newer entries may be missing.

        Raises ValueError, naming `what`, if it is not valid, or if only a newer version can read it.
        """
        if not isinstance(value, dict) or type(value.get("format")) is not int:
            raise ValueError(f"{what} is not the record of a run.")
        writer = _writer(value)
        if value["format"] > FORMAT:
            raise NewerVersion(
                f"{what} was written by {writer or 'a newer groundling'}, and this is {__version__}. Update groundling "
                "to read it."
            )
        try:
            # Through JSON, where a list is as good as a tuple though everything else is strict.
            return RunRecord.model_validate_json(json.dumps(value))
        except ValidationError as error:
            other = writer not in (None, f"groundling {__version__}")
            hint = f" It was written by {writer}, and this is {__version__}." if other else ""
            raise ValueError(f"{what} is not valid: {_problem(error)}{hint}") from None


def _problem(error: ValidationError) -> str:
    """The first one, as a sentence."""
    problem = error.errors(include_url=False)[0]
    *above, last = [str(each)[:80] for each in problem["loc"]] or ["it"]
    if problem["type"] == "value_error" and last in ("settings", "requested"):
        return str(problem["ctx"]["error"])
    if problem["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {"corpus": CorpusFacts, "machine": MachineFacts}
        known = parts.get(above[0] if above else "", RunRecord)
        return f"this version knows no entry {last!r}{did_you_mean(last, list(known.model_fields))}."
    if problem["type"] == "json_invalid":
        return "a text in it is not valid Unicode."
    return f"{'.'.join([*above, last])}: {problem['msg'].lower()}."


def _writer(value: dict[str, Any]) -> str | None:
    """Such as `groundling 0.1.0`."""
    versions = value.get("versions")
    writer = versions.get("groundling") if isinstance(versions, dict) else None
    return f"groundling {writer:.40}" if isinstance(writer, str) else None
