"""Text <-> tokens. One class to hold, whatever a token is; characters are the first kind.

A tokenizer travels with every checkpoint as `tokenizer.json`, and its fingerprint says whether two of
them are the same.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from groundling import storage

END_OF_TEXT = "<|endoftext|>"
Unknown = Literal["error", "skip"]


class Tokenizer(ABC):
    """What every kind of tokenizer can do. Ids run from 0 to `vocab_size - 1`."""

    kind: str
    vocab_size: int
    end_of_text_id: int | None
    """The token that ends a document; None where the training text was a single one."""

    @abstractmethod
    def encode_array(self, text: str, unknown: Unknown = "error", offset: int = 0) -> npt.NDArray[np.uint32]:
        """Ids of `text`, shape (tokens,). Special tokens are never read from text.

        Text that the tokenizer cannot express is a ValueError naming the place, counted from `offset`, or is
        left out (`unknown="skip"`).
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens give nothing. Raises ValueError for an id out of range."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything that defines it, ready for JSON."""

    def encode(self, text: str, unknown: Unknown = "error") -> list[int]:
        """`encode_array` as a list."""
        return self.encode_array(text, unknown).tolist()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the definition: equal for tokenizers that give the same ids."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, path: Path) -> None:
        storage.write_json(path, self.to_dict())

    @staticmethod
    def load(path: Path) -> Tokenizer:
        """Read `tokenizer.json`. Raises ValueError if it is damaged or of an unknown kind."""
        value = storage.read_json(path)
        if not isinstance(value, dict) or value.get("kind") not in list(_KINDS):  # a list: `kind` may be unhashable
            raise ValueError(f"{path} does not hold a tokenizer that this version knows.")
        return _KINDS[value["kind"]].from_dict(value, path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"


class CharTokenizer(Tokenizer):
    """One token a character: `sorted(set(text))`, and one more to end a document if the text has several."""

    kind = "char"

    def __init__(self, characters: Sequence[str], end_of_text: bool = False) -> None:
        if list(characters) != sorted(set(characters)) or any(len(c) != 1 for c in characters):
            raise ValueError("A character tokenizer needs distinct single characters in sorted order.")
        self.characters = "".join(characters)
        self.end_of_text_id = len(characters) if end_of_text else None
        self.vocab_size = len(characters) + end_of_text
        self._codes = np.array([ord(c) for c in characters], dtype=np.uint32)  # sorted, as searchsorted wants

    @classmethod
    def fit(cls, chunks: Iterable[str], end_of_text: bool = False) -> CharTokenizer:
        """The tokenizer of a text that comes in chunks; memory does not grow with the text."""
        seen = np.zeros(0x110000, dtype=bool)
        for chunk in chunks:
            seen[_code_points(chunk)] = True
        return cls([chr(code) for code in np.flatnonzero(seen)], end_of_text)

    def encode_array(self, text: str, unknown: Unknown = "error", offset: int = 0) -> npt.NDArray[np.uint32]:
        codes = _code_points(text)
        if len(self._codes) == 0:
            ids, known = np.zeros(len(codes), dtype=np.uint32), np.zeros(len(codes), dtype=bool)
        else:
            ids = np.searchsorted(self._codes, codes).astype(np.uint32)
            known = self._codes[np.minimum(ids, len(self._codes) - 1)] == codes
        if not known.all():
            if unknown == "error":
                position = int(np.argmin(known))
                raise ValueError(
                    f"The character {text[position]!r} (U+{ord(text[position]):04X}) at position {offset + position} "
                    f"is not among the {len(self._codes)} that this model knows; remove it, or use --unknown skip."
                )
            ids = ids[known]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        try:
            array = np.fromiter(ids, dtype=np.int64) if not isinstance(ids, np.ndarray) else ids
        except OverflowError:
            raise ValueError(f"Token ids must lie in [0, {self.vocab_size}).") from None
        if array.size and not (array.min() >= 0 and array.max() < self.vocab_size):
            raise ValueError(f"Token ids must lie in [0, {self.vocab_size}).")
        codes = self._codes[array[array < len(self._codes)]]  # without the end of a text
        return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def to_dict(self) -> dict[str, Any]:
        special = {} if self.end_of_text_id is None else {END_OF_TEXT: self.end_of_text_id}
        return {"kind": self.kind, "version": 1, "characters": self.characters, "special_tokens": special}

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> CharTokenizer:
        characters, special = value.get("characters"), value.get("special_tokens")
        if value.get("version") != 1 or not isinstance(characters, str) or not isinstance(special, dict):
            raise ValueError(f"{path} does not hold a tokenizer that this version knows.")
        try:
            return cls(characters, END_OF_TEXT in special)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None


_KINDS = {"char": CharTokenizer}


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    # `surrogatepass`: a lone surrogate must reach the caller as an unknown character, not as a codec's error.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
