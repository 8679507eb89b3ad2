"""What `config.json` in a run's folder holds around the settings, and how one that is not ours is refused."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from groundling import __version__
from groundling.config.config import Config, did_you_mean
from groundling.data.fingerprint import MOST_DOCUMENTS

FORMAT = 1
"""Counts up when what is written could no longer be read by an older groundling."""

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Text = Annotated[str, Field(max_length=4096)]


class NewerVersion(ValueError):
    """A record that only a newer version can read."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class DocumentFacts(_Part):
    """A document of the text: its name below the text's address, size and SHA-256 of its content."""

    name: _Text
    bytes: _Count
    sha256: _Text


class CorpusFacts(_Part):
    """The text that a run is trained on. `since` is the step from which on it is this one."""

    name: _Text
    fingerprint: _Text
    documents: _Count
    characters: _Count
    vocab_size: _Count
    tokenizer: _Text
    contents: Annotated[list[DocumentFacts], Field(max_length=MOST_DOCUMENTS)] = []
    since: _Count = 0


class MachineFacts(_Part):
    """What `Machine.describe` gave when the run began."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda|mps)(:[0-9]{1,3})?$")]
    dtype: Literal["float32", "bfloat16", "float16"]
    compile: Literal["auto", "on", "off"]
    threads: Annotated[int, Field(ge=0, le=10_000)]
    reasons: Annotated[list[_Text], Field(max_length=100)]
    evaluation_batch: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class Record(_Part):
    """`requested` are the settings as asked for, `settings` as planned; `former_texts` those before the text was
    changed and `--accept-changed-text` was given; `imported` says where weights came from that were
    not trained here, `bits` what the last digits of results depend on, as of now."""

    format: int
    created: _Text
    requested: dict[str, Any]
    settings: dict[str, Any]
    corpus: CorpusFacts
    machine: MachineFacts
    versions: dict[_Text, _Text]
    track: Annotated[list[_Text], Field(max_length=10)] = []
    former_texts: Annotated[list[CorpusFacts], Field(max_length=1000)] = []
    imported: dict[_Text, _Text] | None = None
    bits: dict[_Text, _Text] = {}


def check_record(value: Any, what: str) -> dict[str, Any]:
    """`value`, if it is the content of a run's config.json. Entries that came later may be missing in older ones.

    Raises ValueError, naming `what`, if it is not, or if a newer version wrote it in a way that this one cannot read.
    """
    if not isinstance(value, dict) or type(value.get("format")) is not int:
        raise ValueError(f"{what} is not the record of a run.")
    if value["format"] > FORMAT:
        raise NewerVersion(f"{what} was made by {_maker(value)}, this is {__version__}: update groundling to read it.")
    try:
        # Through JSON, where a list is as good as a tuple though everything else is strict.
        record = Record.model_validate_json(json.dumps(value))
        datetime.fromisoformat(record.created)
        Config.from_dict(record.requested)
        value["settings"] = Config.from_dict(record.settings).to_dict()  # with what came later
    except ValidationError as error:
        raise ValueError(f"{what} is not right: {_problem(error)}.{_perhaps_newer(value)}") from None
    except ValueError as error:
        raise ValueError(f"{what} is not right: {error}{_perhaps_newer(value)}") from None
    return value


def _problem(error: ValidationError) -> str:
    """The first one, in our words."""
    problem = error.errors(include_url=False)[0]
    *above, last = [str(each)[:80] for each in problem["loc"]] or ["it"]
    if problem["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {"corpus": CorpusFacts, "machine": MachineFacts}
        known = parts.get(above[0] if above else "", Record)
        return f"this version knows no entry {last!r}{did_you_mean(last, list(known.model_fields))}"
    if problem["type"] == "json_invalid":
        return "a text in it is not valid Unicode"
    return f"{'.'.join([*above, last])}: {problem['msg'].lower()}"


def _maker(value: dict[str, Any]) -> str:
    versions = value.get("versions")
    made = versions.get("groundling") if isinstance(versions, dict) else None
    return f"groundling {made:.40}" if isinstance(made, str) else "a newer groundling"


def _perhaps_newer(value: dict[str, Any]) -> str:
    maker = _maker(value)
    if maker in ("a newer groundling", f"groundling {__version__}"):
        return ""
    return f" It was made by {maker}, and this is {__version__}."
