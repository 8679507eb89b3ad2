"""Tokenizers made elsewhere: `tokenizer.json` of the library `tokenizers`, and GPT-2's vocab.json and merges.txt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from groundling.data.tokenizers.base import BYTE_LETTERS, END_OF_TEXT, Tokenizer, not_a_tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer, LibraryTokenizer, letters_to_bytes
from groundling.storage.safe_read import LARGEST_TOKENIZER, read_bytes

_MOST_TOKENS = 2**22  # in a vocabulary

_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
"""Names of the token that ends a document, in known tokenizers."""


class HuggingFaceTokenizer(LibraryTokenizer):
    """Any tokenizer of the library `tokenizers`, defined by its `tokenizer.json`.

    A text must decode to itself, and be encodable in parts. So two things are removed: a space before each text, and
    special tokens around it. If the tokenizer would still change a text (lower-case it, normalize it, replace unknown
    characters), encoding that text is an error.
    """

    kind = "huggingface"

    def __init__(self, definition: dict[str, Any]) -> None:
        """Raises ValueError if the library cannot read `definition`."""
        removed = {"truncation": None, "padding": None, "post_processor": None}
        self.definition = _without_prefixes(definition) | removed
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
        self.end_of_text_id = next((special[name] for name in _ENDS if name in special), None)

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
        return {"kind": self.kind, "version": 1, "definition": self.definition}

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> HuggingFaceTokenizer:
        """The inverse of `to_dict`. Raises ValueError that names `path` if it is damaged."""
        definition = value.get("definition")
        model = definition.get("model") if isinstance(definition, dict) else None
        if value.keys() - {"kind"} != {"version", "definition"} or value["version"] != 1 or not isinstance(model, dict):
            raise not_a_tokenizer(path)
        try:
            return cls(value["definition"])
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def to_huggingface(self) -> dict[str, Any]:
        return self.definition


def read_foreign(value: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer of a file that groundling did not write: `value` is its JSON. See `Tokenizer.load`."""
    if isinstance(value.get("model"), dict):
        return HuggingFaceTokenizer.from_dict({"version": 1, "definition": value}, path)
    merges, ids = path.with_name("merges.txt"), list(value.values())
    if not ids or not all(type(i) is int for i in ids):
        raise not_a_tokenizer(path)
    if sorted(ids) != list(range(len(ids))):
        raise ValueError(f"{path} is damaged: its ids are not 0 to {len(ids) - 1}.")
    if not merges.is_file():
        raise FileNotFoundError(f"{path} needs GPT-2's merges.txt beside it.")
    lines = read_bytes(merges, LARGEST_TOKENIZER).decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    pairs = [line.split(" ") for line in lines[lines[0].startswith("#version") :] if line]
    try:
        return BpeTokenizer(sorted(value, key=value.__getitem__), pairs)
    except ValueError as error:
        raise ValueError(f"{path} and its {merges.name} are damaged: {error}") from None


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
