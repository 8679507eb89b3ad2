"""Tokenizers of the library `tokenizers`, defined by a `tokenizer.json`. foreign.py makes one from other files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from groundling.data.tokenizers.base import END_OF_TEXT, not_a_tokenizer
from groundling.data.tokenizers.bpe import LibraryTokenizer, letters_to_bytes
from groundling.data.tokenizers.byte_level import BYTE_LETTERS

_MOST_TOKENS = 2**22  # in a vocabulary

_LOSSY = ("WordPiece", "WordLevel")
USUAL_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
"""Names of the token that ends a document, in known tokenizers."""


class HuggingFaceTokenizer(LibraryTokenizer):
    """Any tokenizer of the library `tokenizers`, defined by its `tokenizer.json`.

    A text must decode to itself, and be encodable in parts. If the tokenizer would change a text (lower-case it,
    normalize it, replace unknown characters), encoding that text is an error.

    Some tokenizers put a space before each text, so that a word at its start is a token like others. `encode` does,
    too, and `decode` drops it.
    """

    kind = "huggingface"

    def __init__(self, definition: dict[str, Any], ends: Sequence[str] = ()) -> None:
        """`ends` names the token that ends a document, and others after which generation stops. Default: the first of
        the usual names.

        Raises ValueError if the library cannot read `definition`.
        """
        self.definition = definition | {"truncation": None, "padding": None}
        self.definition["post_processor"] = _with_start(definition.get("post_processor"))
        self._unspaced = _space_before(definition)
        try:
            added = {int(token["id"]): token for token in definition.get("added_tokens") or []}
            self._added = {i: b"" if token["special"] else token["content"].encode() for i, token in added.items()}
            special = {token["content"]: i for i, token in added.items() if token["special"]}
            vocabulary = self._library.get_vocab(with_added_tokens=True)
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(f"the library `tokenizers` cannot read it ({error!s:.200}).") from None
        if not vocabulary:
            raise ValueError("its vocabulary is empty.")
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > _MOST_TOKENS:
            raise ValueError(f"its ids go up to {self.vocab_size:,}, above the maximum of {_MOST_TOKENS:,}.")
        if definition["model"].get("dropout"):
            raise ValueError("it uses dropout: the same text would not always get the same tokens.")
        usual = [name for name in USUAL_ENDS if name in special][:1]
        self.ends = [name for name in ends if name in special] or usual
        self._named_ends = [] if self.ends == usual else self.ends
        self.end_of_text_id = special[self.ends[0]] if self.ends else None
        self._end_ids = tuple(special[name] for name in self.ends)
        start = next(_starts(self.definition["post_processor"]), None)
        self.start_of_text_id = special.get(start) if start else None

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self._end_ids

    @property
    def spaces_first_only(self) -> bool:
        """Whether it puts a space before a text, but not after special tokens inside."""
        first = next(iter(steps_of(self.definition.get("pre_tokenizer"))), {})
        return self._unspaced is not None and first.get("prepend_scheme") == "first"

    @property
    def _computed(self) -> dict[str, Any]:
        without_prefixes: dict[str, Any] = _without_prefixes(self.definition)
        return without_prefixes | {"post_processor": None}

    @property
    def normalizer(self) -> str:
        return ", ".join(_changes(self.definition.get("normalizer")))

    @property
    def puts_space_first(self) -> bool:  # type: ignore[override]
        return self._unspaced is not None

    def _prefix(self, text: str) -> str:
        return " " if text and self._unspaced is not None and text[0] not in self._unspaced else ""

    def decode(self, ids: Iterable[int]) -> str:
        text = super().decode(ids)
        return text if self._unspaced is None else text.removeprefix(" ")

    @cached_property
    def pieces(self) -> Sequence[bytes]:
        """The bytes of each token, by id. Special tokens have none, and neither do unused ids."""
        steps = json.dumps([self.definition.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")])
        byte_level, spaced = '"ByteLevel"' in steps, json.dumps("▁") in steps
        pieces = [b""] * self.vocab_size
        for token, i in self._library.get_vocab(with_added_tokens=True).items():
            if self.definition["model"].get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", token):
                pieces[i] = bytes.fromhex(token[3:5])
            elif i in self._added:
                pieces[i] = self._added[i]
            elif byte_level and set(BYTE_LETTERS).issuperset(token):
                pieces[i] = letters_to_bytes(token)
            else:
                pieces[i] = (token.replace("▁", " ") if spaced else token).encode()
        return pieces

    def to_dict(self) -> dict[str, Any]:
        named = {"ends": self._named_ends} if self._named_ends else {}
        return {"kind": self.kind, "version": 1, "definition": self.definition} | named

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> HuggingFaceTokenizer:
        """The inverse of `to_dict`. Raises ValueError that names `path` if it is damaged."""
        definition, ends = value.get("definition"), value.get("ends", [])
        model = definition.get("model") if isinstance(definition, dict) else None
        entries = value.keys() - {"kind", "ends"}
        if entries != {"version", "definition"} or value["version"] != 1 or not isinstance(model, dict):
            raise not_a_tokenizer(path)
        if not isinstance(ends, list) or not all(isinstance(name, str) for name in ends):
            raise not_a_tokenizer(path)
        if model.get("type") in _LOSSY:
            raise ValueError(
                f"{path} is a {model['type']} tokenizer, which does not keep the spaces of a text. groundling reads "
                "BPE and Unigram tokenizers."
            )
        try:
            return cls(value["definition"], ends)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def to_huggingface(self) -> dict[str, Any]:
        return self.definition


def steps_of(node: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be nested sequences."""
    if not isinstance(node, dict):
        return []
    inside = node.get("normalizers", node.get("pretokenizers"))
    return [step for each in inside for step in steps_of(each)] if isinstance(inside, list) else [node]


def _space_before(definition: dict[str, Any]) -> str | None:
    """The characters at the start of a text before which the tokenizer puts no space. None if it never puts one."""
    if any(step.get("type") == "Prepend" for step in steps_of(definition.get("normalizer"))):
        return ""
    first = next(iter(steps_of(definition.get("pre_tokenizer"))), {})
    adds = first.get("add_prefix_space", True)
    if first.get("type") == "Metaspace":
        adds = first.get("prepend_scheme", "always" if adds else "never") != "never"
    return {"Metaspace": " ▁", "ByteLevel": " "}.get(str(first.get("type"))) if adds else None


def _starts(post_processor: Any) -> Iterator[str]:
    """The special tokens that a post-processor puts before a text."""
    for step in (post_processor or {}).get("processors") or [post_processor or {}]:
        for part in step.get("single") or []:
            if "SpecialToken" not in part:
                break
            yield part["SpecialToken"]["id"]


def _with_start(post_processor: Any) -> Any:
    """The post-processor if it puts one token before a text. Others change nothing that we use."""
    try:
        return post_processor if len(list(_starts(post_processor))) == 1 else None
    except (AttributeError, KeyError, TypeError):
        return None


def _without_prefixes(node: Any) -> Any:
    """A definition without the spaces that it would put before each text."""
    if isinstance(node, list):
        return [_without_prefixes(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    off = {"add_prefix_space": False, "prepend_scheme": "never"} if isinstance(node.get("type"), str) else {}
    return {
        key: value if key in ("vocab", "merges") else off.get(key, _without_prefixes(value))
        for key, value in node.items()
    }


def _changes(normalizer: Any) -> Iterator[str]:
    """The names of the steps of a normalizer that can change a text, beyond how it writes spaces and bytes."""
    if not isinstance(normalizer, dict):
        return
    name = str(normalizer.get("type"))
    if name == "Sequence":
        for step in normalizer.get("normalizers") or []:
            yield from _changes(step)
    elif name not in ("Prepend", "ByteLevel") and not (name == "Replace" and normalizer.get("content") == "▁"):
        yield name
