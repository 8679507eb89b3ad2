"""The tokenizer of an ejected run: a few lines for characters and bytes, the library `tokenizers` for all others."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.data.conversations import Message
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.inference.stream import start_ids
from groundling.run.folder import RunFolder


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json, as generate.py reads it."""
    base = base_of(tokenizer)
    if isinstance(base, CharTokenizer):
        base.save(folder / "tokenizer.json")
    elif not isinstance(base, ByteTokenizer):
        storage.write_json(folder / "tokenizer.json", base.to_huggingface())


def tokenizer_facts(run: RunFolder) -> dict[str, Any]:
    """For generate.py: the kind of tokenizer, and the ids around a prompt and at the end of a text."""
    tokenizer = run.tokenizer
    kind = {CharTokenizer: "char", ByteTokenizer: "byte"}.get(type(base_of(tokenizer)), "library")
    start = start_ids(tokenizer, run.record.corpus.documents)
    says = "a line break" if start == tokenizer.encode("\n", "skip") else "token 0"
    says = "the end of a text" if start == [tokenizer.end_of_text_id] else says
    before, after = single_turn(tokenizer) if isinstance(tokenizer, ChatTokenizer) else ([], [])
    return {
        "tokenizer": kind, "prefix": tokenizer.start_ids, "start": start, "start_says": says,
        "ends": list(tokenizer.end_ids), "chat": bool(after), "before": _listed(before), "after": _listed(after),
    }  # fmt: skip


def base_of(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself, or the one that a chat tokenizer wraps."""
    return tokenizer.base if isinstance(tokenizer, ChatTokenizer) else tokenizer


def single_turn(tokenizer: ChatTokenizer) -> tuple[list[int], list[int]]:
    """The tokens before and after what a user says, up to where the reply begins: what is the same for two words.

    Empty if the chat template changes more than that.
    """
    letters = (piece.decode(errors="ignore") for piece in tokenizer.pieces)
    words = [word for word in letters if word.isalnum()][:2]
    chats = [tokenizer.render([Message("user", word)], add_generation_prompt=True).ids for word in words]
    before, after = _common(*chats), _common(*(chat[::-1] for chat in chats))[::-1]
    same = [before + tokenizer.encode(word) + after for word in words]
    return (before, after) if same == chats else ([], [])


def _listed(ids: list[int]) -> str:
    """The list as code, in the way of formatters: on one line, or else each number on its own."""
    line = str(ids)
    return line if len(line) < 70 else "\n    ".join(["[", *(f"{id}," for id in ids)]) + "\n]"


def _common(a: list[int], b: list[int]) -> list[int]:
    """What both begin with."""
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]
