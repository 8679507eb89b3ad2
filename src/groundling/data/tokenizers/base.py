"""Text <-> tokens. One class to hold, whatever a token is; characters and bytes here, learned pieces in bpe.py.

A tokenizer travels with every checkpoint as `tokenizer.json`, and its fingerprint says whether two of
them are the same.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from groundling import storage
from groundling.storage.safe_read import LARGEST_TOKENIZER

END_OF_TEXT = "<|endoftext|>"
Unknown = Literal["error", "skip"]


class UnknownText(ValueError):
    """Text that a tokenizer cannot express."""


class Tokenizer(ABC):
    """What every kind of tokenizer can do. Ids run from 0 to `vocab_size - 1`.

    Each token stands for some bytes of UTF-8, its piece, and a text is its tokens' pieces one after another.
    """

    kind: str
    vocab_size: int
    end_of_text_id: int | None
    """The token that ends a document; None if there is none, as for the characters of a single document."""

    @abstractmethod
    def encode_array(self, text: str, unknown: Unknown = "error", offset: int = 0) -> npt.NDArray[np.uint32]:
        """Ids of `text`, shape (tokens,). Special tokens are never read from text.

        Text that the tokenizer cannot express is an UnknownText (a ValueError) naming the place, counted from
        `offset`, or is left out (`unknown="skip"`).
        """

    @property
    @abstractmethod
    def pieces(self) -> Sequence[bytes]:
        """The bytes that each token stands for, by id; none for a special token."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything that defines it, ready for JSON."""

    @abstractmethod
    def to_huggingface(self) -> dict[str, Any]:
        """The same tokenizer as the content of a `tokenizer.json` of Hugging Face's library `tokenizers`.

        That library gives every text the same ids; what this tokenizer cannot express it leaves out. It reads
        `<|endoftext|>` from text as the special token, unless its `encode_special_tokens` is set.
        """

    def encode(self, text: str, unknown: Unknown = "error") -> list[int]:
        """`encode_array` as a list."""
        return self.encode_array(text, unknown).tolist()

    def encode_chunks(self, chunks: Iterable[str], unknown: Unknown = "error") -> Iterator[npt.NDArray[np.uint32]]:
        """Ids of a document that comes in chunks, exactly those of the whole, in memory that does not grow with it."""
        position = 0
        for chunk in chunks:
            yield self.encode_array(chunk, unknown, offset=position)
            position += len(chunk)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; they may begin or end inside a character. Raises ValueError for an id out of range."""
        try:
            array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        except OverflowError:
            raise ValueError(f"Token ids must lie in [0, {self.vocab_size}).") from None
        if array.size and not (array.min() >= 0 and array.max() < self.vocab_size):
            raise ValueError(f"Token ids must lie in [0, {self.vocab_size}).")
        pieces = self.pieces
        return b"".join([pieces[i] for i in array.tolist()])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens give nothing, and bytes that are no character U+FFFD.

        Raises ValueError for an id out of range.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    @cached_property
    def sizes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """How many bytes and how many characters each token counts for, both of shape (vocab_size,).

        A character counts where its first byte stands, so the sums over a text are exact for any tokens.
        """
        n_characters = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces]
        return np.array([len(piece) for piece in self.pieces], np.int64), np.array(n_characters, np.int64)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the definition: equal for tokenizers that give the same ids."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write our `tokenizer.json`, which `load` reads."""
        storage.write_json(Path(path), self.to_dict())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer: our `tokenizer.json`, one of the library `tokenizers`, GPT-2's `vocab.json` beside its
        `merges.txt`, or a folder with any of these, such as a run's.

        Raises FileNotFoundError if nothing is there, ValueError if it is damaged or of an unknown kind.
        """
        path = Path(path)
        if path.is_dir():
            names = [name for name in ("tokenizer.json", "vocab.json") if (path / name).is_file()]
            if not names:
                raise FileNotFoundError(f"The folder {path} holds no tokenizer.json, and no vocab.json either.")
            path = path / names[0]
        elif not path.exists():
            raise FileNotFoundError(f"There is no tokenizer at {path}.")
        return Tokenizer.of(storage.read_json(path, LARGEST_TOKENIZER), path)

    @staticmethod
    def of(value: Any, path: Path) -> Tokenizer:
        """The tokenizer that some JSON of the file `path` defines. Raises ValueError if that is none."""
        if not isinstance(value, dict):
            raise ValueError(f"{path} does not hold a tokenizer that this version knows.")
        kind = value.get("kind")
        # Found by name, so that each kind may stand in a file of its own that imports this one.
        if not isinstance(kind, str):  # not ours; in a vocabulary, "kind" may be a token, whose value is its id
            tokenizer: Tokenizer = importlib.import_module("groundling.data.tokenizers.bpe").read_foreign(value, path)
            return tokenizer
        if kind not in _KINDS:
            raise ValueError(f"{path} does not hold a tokenizer that this version knows.")
        module, name = _KINDS[kind]
        return getattr(importlib.import_module(module), name).from_dict(value, path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"


_KINDS = {
    "char": (__name__, "CharTokenizer"),
    "byte": (__name__, "ByteTokenizer"),
    "bpe": ("groundling.data.tokenizers.bpe", "BpeTokenizer"),
    "huggingface": ("groundling.data.tokenizers.bpe", "HuggingFaceTokenizer"),
}


class CharTokenizer(Tokenizer):
    """One token a character: `sorted(set(text))`, and one more to end a document if the text has several."""

    kind = "char"

    def __init__(self, characters: Sequence[str], end_of_text: bool = False) -> None:
        if list(characters) != sorted(set(characters)) or any(len(c) != 1 for c in characters):
            raise ValueError("A character tokenizer needs distinct single characters in sorted order.")
        self.characters = "".join(characters)
        utf8(self.characters)  # half a character is none
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

    @cached_property
    def pieces(self) -> Sequence[bytes]:
        return [c.encode() for c in self.characters] + [b""] * (self.end_of_text_id is not None)

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
                raise UnknownText(
                    f"The character {text[position]!r} (U+{ord(text[position]):04X}) at position {offset + position} "
                    f"is not among the {len(self._codes)} that this model knows; remove it. sample, chat, eval and "
                    "serve can leave it out, with --unknown skip."
                )
            ids = ids[known]
        return ids

    def to_dict(self) -> dict[str, Any]:
        special = {} if self.end_of_text_id is None else {END_OF_TEXT: self.end_of_text_id}
        return {"kind": self.kind, "version": 1, "characters": self.characters, "special_tokens": special}

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> CharTokenizer:
        """The inverse of `to_dict`. Raises ValueError that names `path` if it is damaged."""
        characters, special = value.get("characters"), value.get("special_tokens")
        if value.get("version") != 1 or not isinstance(characters, str) or not isinstance(special, dict):
            raise ValueError(f"{path} does not hold a tokenizer that this version knows.")
        try:
            tokenizer = cls(characters, END_OF_TEXT in special)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if value != tokenizer.to_dict():
            raise ValueError(f"{path} is damaged: it has entries that a character tokenizer has not.")
        return tokenizer

    def to_huggingface(self) -> dict[str, Any]:
        # BPE that merges nothing: a symbol of its model is a character, so there is no id beside ours.
        return huggingface(
            {c: i for i, c in enumerate(self.characters)}, [], self.end_of_text_id, None, {"type": "Fuse"}
        )


class ByteTokenizer(Tokenizer):
    """One token a byte of UTF-8, its value the id, and 256 to end a document: any text in any script."""

    kind = "byte"
    vocab_size = 257
    end_of_text_id = 256
    pieces = (*(bytes([value]) for value in range(256)), b"")

    def encode_array(self, text: str, unknown: Unknown = "error", offset: int = 0) -> npt.NDArray[np.uint32]:
        return np.frombuffer(utf8(text, unknown, offset), dtype=np.uint8).astype(np.uint32)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "version": 1, "special_tokens": {END_OF_TEXT: self.end_of_text_id}}

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> ByteTokenizer:
        """The inverse of `to_dict`. Raises ValueError that names `path` if it is damaged."""
        if value != cls().to_dict():
            raise ValueError(f"{path} does not hold a tokenizer that this version knows.")
        return cls()

    def to_huggingface(self) -> dict[str, Any]:
        vocabulary = {letter: value for value, letter in enumerate(BYTE_LETTERS)}
        bytes_only = BYTE_LEVEL | {"use_regex": False}
        return huggingface(vocabulary, [], self.end_of_text_id, bytes_only, BYTE_LEVEL)


def utf8(text: str, unknown: Unknown = "error", offset: int = 0) -> bytes:
    """`text` in UTF-8. Half a surrogate pair is an UnknownText naming its place from `offset`, or is left out."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        if unknown == "skip":
            return text.encode("utf-8", "ignore")
        raise UnknownText(
            f"The text has a lone surrogate (U+{ord(text[error.start]):04X}) at position {offset + error.start}: half "
            "of a UTF-16 pair, which is no character. Remove it."
        ) from None


def _byte_letters() -> str:
    """GPT-2's printable stand-in for each byte: itself where Latin-1 prints it, else the next letter from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_LETTERS = _byte_letters()
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
"""Words as GPT-2 splits them, in those letters."""


def huggingface(
    vocabulary: dict[str, int],
    merges: Sequence[Sequence[str]],
    end_of_text_id: int | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    """A BPE as the library `tokenizers` writes it into `tokenizer.json`."""
    special = {
        "id": end_of_text_id, "content": END_OF_TEXT, "special": True,
        "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
    }  # fmt: skip
    if end_of_text_id is not None:
        vocabulary = vocabulary | {END_OF_TEXT: end_of_text_id}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [] if end_of_text_id is None else [special],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocabulary, "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    # `surrogatepass`: a lone surrogate must reach the caller as an unknown character, not as a codec's error.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
