"""Whether files hold conversations, by their first entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice
from typing import Any

from groundling.config import CorpusSettings
from groundling.data.conversations import Preference, conversation_of
from groundling.data.sources import CorpusPath, Source, find_source


def first_entry(source: Source) -> Any:
    """The first entry of a source that was found with `entries=True`, or None if it has none."""
    return next((entry for _, entry in islice(source.entries(source.files[0]), 1)), None)


def holds_conversations(data: CorpusPath | Sequence[CorpusPath], settings: CorpusSettings) -> bool:
    """Whether the first entry is a conversation, a pair or a prompt, and not a text. False if it cannot be read."""
    try:
        source = find_source(data, dataclasses.replace(settings, format="auto"), entries=True)
        row = conversation_of(first_entry(source), "") if source.files[0].format != "text" else None
    except (ValueError, OSError):
        return False
    return isinstance(row, Preference) or (row is not None and row.messages[0].role != "assistant")
