"""The `Tokenizer` class, and the character and byte tokenizers. BPE is in bpe.py and huggingface.py.

Every checkpoint holds its tokenizer as `tokenizer.json`. Two tokenizers are the same if their fingerprints are equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from groundling import storage
from groundling.data.tokenizers.alphabet import UNKNOWN, Alphabet, IdTable, utf8
from groundling.data.tokenizers.alphabet import UnknownText as UnknownText
from groundling.data.tokenizers.byte_level import BYTE_LETTERS, BYTE_LEVEL, huggingface_bpe
from groundling.data.tokenizers.lookalikes import described, fit_prompt, what_to_do
from groundling.storage.safe_read import LARGEST_TOKENIZER

END_OF_TEXT = "<|endoftext|>"
Unknown = Literal["error", "skip"]
UnsignedIds = npt.NDArray[np.unsignedinteger[Any]]


class PromptWarning(UserWarning):
    """The prompt is not used as it was given."""


class Tokenizer(ABC):
    """Base class of all tokenizers. Ids run from 0 to `vocab_size - 1`.

    Each token has a piece, some bytes of UTF-8. The pieces of a text's tokens, joined, are the text.
    """

    kind: str
    vocab_size: int
    end_of_text_id: int | None
    """The token that ends a document. None if there is none, as for the characters of a single document."""
    start_of_text_id: int | None = None
    """The token before each document, for models that were trained with one, such as Llama's `<s>`."""
    puts_space_first: bool = False
    """Whether it may put a space before a document, which its pieces then have."""

    @abstractmethod
    def encode_array(self, text: str, unknown: Unknown = "error", offset: int = 0) -> npt.NDArray[np.uint32]:
        """Ids of `text`, shape (tokens,). Special tokens are never read from text.

        Text that the tokenizer cannot encode raises UnknownText (a ValueError) with its position, counted from
        `offset`. With `unknown="skip"` it is dropped instead.
        """

    @property
    @abstractmethod
    def pieces(self) -> Sequence[bytes]:
        """The bytes of each token, by id. Special tokens have none."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything that defines the tokenizer, ready for JSON."""

    @abstractmethod
    def to_huggingface(self) -> dict[str, Any]:
        """The content of a `tokenizer.json` with which Hugging Face's library `tokenizers` gives the same ids.

        The library drops text that this tokenizer cannot encode, and reads `<|endoftext|>` in a text as the special
        token, unless its `encode_special_tokens` is set.
        """

    def encode(self, text: str, unknown: Unknown = "error") -> list[int]:
        """`encode_array` as a list."""
        return self.encode_array(text, unknown).tolist()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens after which generation stops: `end_of_text_id`, and others that a model may end its texts with."""
        return () if self.end_of_text_id is None else (self.end_of_text_id,)

    def encode_prompt(self, text: str, unknown: Unknown = "error") -> list[int]:
        """`encode`, after the token that starts a document, if there is one.

        Warns with PromptWarning if `fit_prompt` converts the text.
        """
        fitted, said = self.fit_prompt(text)
        if said:
            warnings.warn(said, PromptWarning, stacklevel=2)
        return [*self.start_ids, *self.encode(fitted, unknown)]

    def fit_prompt(self, prompt: str) -> tuple[str, str]:
        """`prompt` in the Unicode form and line ends that the tokenizer knows, and a sentence if it differs."""
        return fit_prompt(prompt, self.knows, self.normalizer)

    def knows(self, character: str) -> bool:
        """Whether the tokenizer has the character as a whole, so that it was in the text that it was made from."""
        return character.encode("utf-8", "replace") in self._joined_pieces

    @cached_property
    def _joined_pieces(self) -> bytes:
        return b"\n".join(self.pieces)

    @property
    def normalizer(self) -> str:
        """What the tokenizer does to a text before it encodes it, such as `NFC, Lowercase`. Empty for nothing."""
        return ""

    @property
    def normalizer_notice(self) -> str:
        if not self.normalizer:
            return ""
        return f"The tokenizer normalizes texts ({self.normalizer}): one that would not decode to itself is refused."

    @property
    def start_ids(self) -> list[int]:
        return [] if self.start_of_text_id is None else [self.start_of_text_id]

    can_be_cut: bool = True
    """Whether a text can be encoded in parts that end before a space or line break after a letter or digit."""

    def encode_chunks(
        self, chunks: Iterable[str], unknown: Unknown = "error", position: int = 0
    ) -> Iterator[npt.NDArray[np.uint32]]:
        """Ids of a document that comes in chunks: the same ids as for the whole, in memory for one chunk. The first
        chunk starts at `position` in the document."""
        for chunk in chunks:
            yield self.encode_array(chunk, unknown, offset=position)
            position += len(chunk)

    def encode_batch(self, texts: Sequence[str], unknown: Unknown = "error") -> tuple[UnsignedIds, list[int]]:
        """Ids of several documents, one after another, and how many each has: those of `encode_array`, but faster."""
        encoded = [self.encode_array(text, unknown) for text in texts]
        return np.concatenate(encoded), list(map(len, encoded))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, which may start or end inside a character. Raises ValueError for an id out of range."""
        try:
            array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
            in_range = array.size == 0 or (array.min() >= 0 and array.max() < self.vocab_size)
        except OverflowError:
            in_range = False
        if not in_range:
            raise ValueError(f"Token ids must lie in [0, {self.vocab_size}).")
        pieces = self.pieces
        return b"".join([pieces[i] for i in array.tolist()])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Special tokens give no text, and bytes that are not valid UTF-8 give U+FFFD.

        Raises ValueError for an id out of range.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    @cached_property
    def sizes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Bytes and characters of each token, two arrays of shape (vocab_size,).

        A character counts for the token with its first byte, so the sums over a text are exact.
        """
        n_characters = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces]
        return np.array([len(piece) for piece in self.pieces], np.int64), np.array(n_characters, np.int64)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the definition. Tokenizers with equal fingerprints give the same ids."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write groundling's `tokenizer.json`. `load` reads it."""
        storage.write_json(Path(path), self.to_dict())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer from groundling's `tokenizer.json`, Hugging Face's `tokenizer.json`, GPT-2's `vocab.json`
        with its `merges.txt` beside it, a SentencePiece model, or a folder with one of these, such as a run's.

        Raises FileNotFoundError if there is no such file, ValueError if it is damaged or of an unknown kind.
        """
        path = Path(path)
        if path.is_dir():
            names = [name for name in ("tokenizer.json", "vocab.json", "tokenizer.model") if (path / name).is_file()]
            if not names:
                known = next((kind for name, kind in _UNKNOWN_FILES.items() if (path / name).is_file()), None)
                raise FileNotFoundError(
                    f"The folder {path} holds no tokenizer.json, no vocab.json and no tokenizer.model."
                    + (f" groundling does not read {known}." if known else "")
                )
            path = path / names[0]
        elif not path.exists():
            raise FileNotFoundError(f"There is no tokenizer at {path}.")
        if path.suffix == ".model":
            return READERS["sentencepiece"]({}, path)
        return Tokenizer.of(storage.read_json(path, LARGEST_TOKENIZER), path)

    @staticmethod
    def of(value: Any, path: Path) -> Tokenizer:
        """The tokenizer that `value`, the JSON of the file `path`, defines. Raises ValueError if it defines none."""
        if isinstance(value, dict):
            kind = value.get("kind")  # in GPT-2's vocab.json, "kind" may be a token, and its value an id
            if kind != "sentencepiece" and (reader := READERS.get(kind if isinstance(kind, str) else None)):
                return reader(value, path)
        raise not_a_tokenizer(path)

    @classmethod
    def _restored(cls, value: dict[str, Any], path: Path, *arguments: Any) -> Self:
        """The tokenizer made of `arguments`. Raises ValueError that names `path` if its `to_dict` is not `value`."""
        try:
            tokenizer = cls(*arguments)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if value != tokenizer.to_dict():
            raise ValueError(f"{path} is damaged: its special tokens, or other entries, do not fit its vocabulary.")
        return tokenizer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"


_UNKNOWN_FILES = {"tekken.json": "Mistral's tekken.json", "vocab.txt": "WordPiece's vocab.txt"}
READERS: dict[str | None, Callable[[dict[str, Any], Path], Tokenizer]] = {}
"""What reads the JSON of each kind of file; None reads files without a kind, which are not groundling's, and
"sentencepiece" a SentencePiece model, which is no JSON.

`data/tokenizers/__init__.py` fills it, so that this file need not import the kinds, which import it."""


def not_a_tokenizer(path: Path) -> ValueError:
    return ValueError(f"{path} does not hold a tokenizer that this version of groundling can read.")


class CharTokenizer(Tokenizer):
    """One token per character, `sorted(set(text))`, and one to end a document if the text has several."""

    kind = "char"

    def __init__(self, characters: Sequence[str], end_of_text: bool = False) -> None:
        if list(characters) != sorted(set(characters)) or any(len(c) != 1 for c in characters):
            raise ValueError("A character tokenizer needs distinct single characters in sorted order.")
        self.characters = "".join(characters)
        utf8(self.characters)  # refuses lone surrogates
        self.end_of_text_id = len(characters) if end_of_text else None
        self.vocab_size = len(characters) + end_of_text
        self._ids = IdTable(self.characters)

    @classmethod
    def fit(cls, chunks: Iterable[str], end_of_text: bool = False) -> CharTokenizer:
        """The tokenizer of a text that comes in chunks. Memory does not grow with the text."""
        alphabet = Alphabet()
        for chunk in chunks:
            alphabet.add(chunk)
        return cls(alphabet.characters, end_of_text)

    @cached_property
    def pieces(self) -> Sequence[bytes]:
        return [c.encode() for c in self.characters] + [b""] * (self.end_of_text_id is not None)

    def encode_array(self, text: str, unknown: Unknown = "error", offset: int = 0) -> npt.NDArray[np.uint32]:
        ids = self._ids[text]
        known = ids != UNKNOWN
        if known.all():
            return ids
        if unknown == "skip":
            return ids[known]
        position = int(np.argmin(known))
        raise UnknownText(
            f"The character {described(text[position])} at position {offset + position} is not among the "
            f"{len(self.characters)} in the vocabulary. {what_to_do(text, position, self.characters)}, or drop unknown "
            "characters with --unknown skip (sample, chat, eval, serve)."
        )

    def encode_batch(self, texts: Sequence[str], unknown: Unknown = "error") -> tuple[UnsignedIds, list[int]]:
        ids = self._ids["".join(texts)]
        if UNKNOWN in ids:
            return super().encode_batch(texts, unknown)
        return ids, list(map(len, texts))

    def knows(self, character: str) -> bool:
        return character in self.characters

    def to_dict(self) -> dict[str, Any]:
        special = special_tokens(self.end_of_text_id)
        return {"kind": self.kind, "version": 1, "characters": self.characters, "special_tokens": special}

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> CharTokenizer:
        """The inverse of `to_dict`. Raises ValueError that names `path` if it is damaged."""
        characters, special = value.get("characters"), value.get("special_tokens")
        if value.get("version") != 1 or not isinstance(characters, str) or not isinstance(special, dict):
            raise not_a_tokenizer(path)
        return cls._restored(value, path, characters, END_OF_TEXT in special)

    def to_huggingface(self) -> dict[str, Any]:
        # A BPE without merges: its tokens are the characters, so it has the same ids and no others.
        vocabulary = {c: i for i, c in enumerate(self.characters)}
        return huggingface_bpe(vocabulary, [], special_tokens(self.end_of_text_id), None, {"type": "Fuse"})


class ByteTokenizer(Tokenizer):
    """One token per byte of UTF-8, its value the id, and 256 to end a document. Encodes any text in any script."""

    kind = "byte"
    vocab_size = 257
    end_of_text_id = 256
    pieces = (*(bytes([value]) for value in range(256)), b"")

    def encode_array(self, text: str, unknown: Unknown = "error", offset: int = 0) -> npt.NDArray[np.uint32]:
        return np.frombuffer(utf8(text, unknown, offset), dtype=np.uint8).astype(np.uint32)

    def encode_batch(self, texts: Sequence[str], unknown: Unknown = "error") -> tuple[UnsignedIds, list[int]]:
        contents = [utf8(text, unknown) for text in texts]
        return np.frombuffer(b"".join(contents), dtype=np.uint8), list(map(len, contents))

    def knows(self, character: str) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "version": 1, "special_tokens": {END_OF_TEXT: self.end_of_text_id}}

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> ByteTokenizer:
        """The inverse of `to_dict`. Raises ValueError that names `path` if it is damaged."""
        if value != cls().to_dict():
            raise not_a_tokenizer(path)
        return cls()

    def to_huggingface(self) -> dict[str, Any]:
        vocabulary = {letter: value for value, letter in enumerate(BYTE_LETTERS)}
        special = special_tokens(self.end_of_text_id)
        return huggingface_bpe(vocabulary, [], special, BYTE_LEVEL | {"use_regex": False}, BYTE_LEVEL)


def special_tokens(end_of_text_id: int | None) -> dict[str, int]:
    return {} if end_of_text_id is None else {END_OF_TEXT: end_of_text_id}
