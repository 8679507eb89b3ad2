"""Tokens that are learned from text: byte-level BPE (Sennrich et al., 2016; Radford et al., 2019).

The arithmetic is that of Hugging Face's library `tokenizers`, whose own files can be read too, and GPT-2's. A text
of any size is encoded in parts, cut where no token can lie across, so that the ids are those of the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from groundling.data.tokenizers.base import (
    BYTE_LETTERS,
    BYTE_LEVEL,
    END_OF_TEXT,
    Tokenizer,
    Unknown,
    UnknownText,
    huggingface,
    utf8,
)
from groundling.storage.safe_read import LARGEST_TOKENIZER, read_bytes

if TYPE_CHECKING:
    import tokenizers

_PART = 64 * 2**10  # characters that one core encodes at a time
MOST_TOKENS = 2**22  # of a vocabulary
_LONGEST = 16 * 2**20  # characters that are held back at most where no place to cut comes

# A letter or digit, then a space or line break: the splitters of GPT-2, GPT-4, Llama 3, Qwen and the like all begin a
# new word there, whatever comes before and after.
_BORDER = re.compile(r"(?<=[^\W_])(?=[ \n])")
_ACROSS = re.compile(r"[^\W_][ \n]")

_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
"""What known tokenizers call the token that ends a document."""


class _LibraryTokenizer(Tokenizer):
    """What the two kinds below share: all that the library `tokenizers` computes."""

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        import tokenizers

        with _no_panic():
            library = tokenizers.Tokenizer.from_str(json.dumps(self.to_huggingface()))
        library.encode_special_tokens = True  # as text: a document cannot end itself
        return library

    @cached_property
    def _can_be_cut(self) -> bool:
        return not any(_ACROSS.search(piece.decode("utf-8", "ignore")) for piece in self.pieces)

    def encode_array(self, text: str, unknown: Unknown = "error", offset: int = 0) -> npt.NDArray[np.uint32]:
        content = utf8(text, unknown, offset)
        if unknown == "skip":
            text = content.decode()
        parts = list(_parts(text)) if self._can_be_cut else [text]
        library = self._library
        with _no_panic():
            encoded = library.encode_batch_fast(parts, add_special_tokens=False)
        ids = np.concatenate([np.array(part.ids, dtype=np.uint32) for part in encoded])
        if unknown == "error":
            given = self.decode_bytes(ids)
            if given != content:
                same = next((i for i, (a, b) in enumerate(zip(given, content, strict=False)) if a != b), len(given))
                place = len(content[:same].decode("utf-8", "ignore"))
                raise UnknownText(
                    f"This tokenizer changes the text: {text[place : place + 12]!r} at position {offset + place} would "
                    "not come back as it was. Use another tokenizer, such as byte or bpe."
                )
        return ids

    def encode_chunks(self, chunks: Iterable[str], unknown: Unknown = "error") -> Iterator[npt.NDArray[np.uint32]]:
        """Ids of a document that comes in chunks, exactly those of the whole.

        Memory does not grow with it, but for a tokenizer of another's making with tokens of several words: there the
        document is held whole. Where 16 million characters have no place to cut, they are cut at their end all the
        same.
        """
        position = 0
        for piece in _at_borders(chunks) if self._can_be_cut else ["".join(chunks)]:
            yield self.encode_array(piece, unknown, offset=position)
            position += len(piece)


class BpeTokenizer(_LibraryTokenizer):
    """Byte-level BPE as GPT-2's: its splitting into words, then merges of bytes, the most frequent pair first."""

    kind = "bpe"

    def __init__(self, vocabulary: Sequence[str], merges: Sequence[Sequence[str]]) -> None:
        """`vocabulary` has the tokens by id, in GPT-2's letters for bytes, and `<|endoftext|>` where it has one;
        `merges` the pairs of them that are merged, the first first. Raises ValueError if these do not fit together."""
        letters, known = set(BYTE_LETTERS), set(vocabulary)
        if len(known) < len(vocabulary) or not all(token and letters.issuperset(token) for token in vocabulary):
            raise ValueError("A BPE needs distinct tokens, in GPT-2's letters for bytes.")
        for pair in merges:
            if len(pair) != 2 or not known.issuperset([*pair, "".join(pair)]):
                raise ValueError(f"The merge {pair!r} is not of two tokens of the vocabulary that make another.")
        self.vocabulary, self.merges = tuple(vocabulary), tuple((first, second) for first, second in merges)
        self.vocab_size = len(vocabulary)
        self.end_of_text_id = self.vocabulary.index(END_OF_TEXT) if END_OF_TEXT in known else None

    @classmethod
    def fit(cls, chunks: Iterable[str], vocab_size: int) -> BpeTokenizer:
        """The tokenizer of a text that comes in chunks: 256 bytes, merges of pairs that occur at least twice, and
        `<|endoftext|>`, `vocab_size` tokens at most. The same text gives the same.

        Memory grows with the number of different words.
        """
        import tokenizers
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer

        library = tokenizers.Tokenizer(BPE())
        library.pre_tokenizer = ByteLevel(add_prefix_space=False)
        trainer = BpeTrainer(
            vocab_size=vocab_size - 1, min_frequency=2, initial_alphabet=sorted(BYTE_LETTERS), show_progress=False
        )
        # A text without words must not become a single one of its own length.
        words = (
            part[i : i + 2 * _PART]
            for chunk in _at_borders(chunks)
            for part in _parts(chunk)
            for i in range(0, len(part), 2 * _PART)
        )
        library.train_from_iterator(words, trainer)
        model = json.loads(library.to_str())["model"]
        return cls([*sorted(model["vocab"], key=model["vocab"].__getitem__), END_OF_TEXT], model["merges"])

    @cached_property
    def pieces(self) -> Sequence[bytes]:
        return [b"" if i == self.end_of_text_id else _unlettered(token) for i, token in enumerate(self.vocabulary)]

    def to_dict(self) -> dict[str, Any]:
        special = {} if self.end_of_text_id is None else {END_OF_TEXT: self.end_of_text_id}
        merges = [list(pair) for pair in self.merges]
        return {
            "kind": self.kind, "version": 1, "vocabulary": list(self.vocabulary), "merges": merges,
            "special_tokens": special,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> BpeTokenizer:
        """The inverse of `to_dict`. Raises ValueError that names `path` if it is damaged."""
        vocabulary, merges = value.get("vocabulary"), value.get("merges")
        if value.get("version") != 1 or not (_are_texts(vocabulary) and isinstance(merges, list)):
            raise ValueError(f"{path} does not hold a tokenizer that this version knows.")
        assert vocabulary is not None
        if not all(_are_texts(pair) for pair in merges):
            raise ValueError(f"{path} is damaged: its merges are not pairs of tokens.")
        try:
            tokenizer = cls(vocabulary, merges)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if value != tokenizer.to_dict():
            raise ValueError(f"{path} is damaged: its special tokens, or other entries, do not fit its vocabulary.")
        return tokenizer

    def to_huggingface(self) -> dict[str, Any]:
        vocabulary = {token: i for i, token in enumerate(self.vocabulary)}
        return huggingface(vocabulary, self.merges, self.end_of_text_id, BYTE_LEVEL, BYTE_LEVEL)


class HuggingFaceTokenizer(_LibraryTokenizer):
    """Any tokenizer of the library `tokenizers`, as its `tokenizer.json` defines it.

    Two things are left out, since a text must come back as it was and in parts: a space that some put before each
    text, and special tokens around it. A text that the tokenizer would change nevertheless (lower-case, normalize,
    replace what it does not know) is refused when it is encoded.
    """

    kind = "huggingface"

    def __init__(self, definition: dict[str, Any]) -> None:
        """Raises ValueError if the library cannot read `definition`."""
        self.definition = _without_prefixes(definition) | {
            "truncation": None, "padding": None, "post_processor": None,
        }  # fmt: skip
        try:
            added = {int(token["id"]): token for token in definition.get("added_tokens") or []}
            self._added = {i: b"" if token["special"] else token["content"].encode() for i, token in added.items()}
            special = {token["content"]: i for i, token in added.items() if token["special"]}
            vocabulary = self._library.get_vocab(with_added_tokens=True)
        except Exception as error:  # the library raises nothing more particular
            raise ValueError(f"the library `tokenizers` cannot read it ({error!s:.200}).") from None
        if not vocabulary:
            raise ValueError("its vocabulary is empty.")
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > MOST_TOKENS:
            raise ValueError(f"its ids go to {self.vocab_size:,}, and {MOST_TOKENS:,} is the most that is read.")
        if definition["model"].get("dropout"):
            raise ValueError("it has a dropout: the same text would not always have the same tokens.")
        self.end_of_text_id = next((special[name] for name in _ENDS if name in special), None)

    @cached_property
    def pieces(self) -> Sequence[bytes]:
        """The bytes that each token stands for, by id; none for a special token, nor for an id without one."""
        read = json.dumps([self.definition.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")])
        byte_level, spaced = '"ByteLevel"' in read, json.dumps("▁") in read
        pieces = [b""] * self.vocab_size
        for token, i in self._library.get_vocab(with_added_tokens=True).items():
            if self.definition["model"].get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", token):
                pieces[i] = bytes.fromhex(token[3:5])
            elif i in self._added:
                pieces[i] = self._added[i]
            elif byte_level and set(BYTE_LETTERS).issuperset(token):
                pieces[i] = _unlettered(token)
            else:
                pieces[i] = (token.replace("▁", " ") if spaced else token).encode()
        return pieces

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "version": 1, "definition": self.definition}

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> HuggingFaceTokenizer:
        """The inverse of `to_dict`. Raises ValueError that names `path` if it is damaged."""
        if value.keys() - {"kind"} != {"version", "definition"} or value["version"] != 1 or not _is_model(value):
            raise ValueError(f"{path} does not hold a tokenizer that this version knows.")
        try:
            return cls(value["definition"])
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def to_huggingface(self) -> dict[str, Any]:
        return self.definition


def read_foreign(value: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer of a file that is not ours, whose JSON `value` is: see `Tokenizer.load`."""
    if isinstance(value.get("model"), dict):
        return HuggingFaceTokenizer.from_dict({"version": 1, "definition": value}, path)
    merges, ids = path.with_name("merges.txt"), list(value.values())
    if not ids or not all(type(i) is int for i in ids):
        raise ValueError(f"{path} does not hold a tokenizer that this version knows.")
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


def _is_model(value: dict[str, Any]) -> bool:
    definition = value["definition"]
    return isinstance(definition, dict) and isinstance(definition.get("model"), dict)


@contextmanager
def _no_panic() -> Iterator[None]:
    """What the library `tokenizers` cannot do, as an error like any other: a panic of Rust's is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"The library `tokenizers` failed: {error!s:.200}") from None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _unlettered(token: str) -> bytes:
    return bytes(map(_BYTE_OF.__getitem__, token))


_BYTE_OF = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


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


def _at_borders(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that end where it can be cut, and nowhere else but after `_LONGEST` without a place."""
    held = ""
    for chunk in chunks:
        held += chunk
        cut = _last_border(held) or (len(held) if len(held) >= _LONGEST else 0)
        if cut:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _last_border(text: str) -> int:
    """The last place where `text` can be cut; 0 if there is none."""
    for span in (2**10, 2**16, len(text)):
        start = max(0, len(text) - span)
        places = [found.start() for found in _BORDER.finditer(text, start)]
        if places:
            return places[-1]
    return 0


def _parts(text: str) -> Iterator[str]:
    """Parts of about `_PART` characters that can be encoded one by one."""
    start = 0
    while len(text) - start > _PART and (found := _BORDER.search(text, start + _PART)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]
