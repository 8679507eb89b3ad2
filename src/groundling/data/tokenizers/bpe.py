"""Byte-level BPE (Sennrich et al., 2016; Radford et al., 2019), trained and encoded by the library `tokenizers`.

Long texts are encoded in parts. They are cut only where no token can cross, so the ids are those of the whole text.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from groundling.data.tokenizers.alphabet import UnknownText, utf8
from groundling.data.tokenizers.base import (
    END_OF_TEXT,
    Tokenizer,
    Unknown,
    UnsignedIds,
    not_a_tokenizer,
    special_tokens,
)
from groundling.data.tokenizers.byte_level import BYTE_LETTERS, BYTE_LEVEL, huggingface_bpe

if TYPE_CHECKING:
    import tokenizers

_PART = 64 * 2**10  # characters that one core encodes at a time
_LONGEST = 16 * 2**20  # characters to wait for a place to cut, at most

# A letter or digit before a space or line break: the word splitters of GPT-2, GPT-4, Llama 3, Qwen and others all start
# a new word there, whatever comes before and after.
_BORDER = re.compile(r"(?<=[^\W_])(?=[ \n])")
_UP_TO_LAST_BORDER = re.compile(r".*[^\W_](?=[ \n])", re.DOTALL)

_BYTE_OF = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def letters_to_bytes(token: str) -> bytes:
    """A token in GPT-2's letters, as the bytes that they stand for."""
    return bytes(map(_BYTE_OF.__getitem__, token))


class LibraryTokenizer(Tokenizer):
    """A tokenizer that the library `tokenizers` computes, from `_computed`."""

    @property
    def _computed(self) -> dict[str, Any]:
        """The definition for the library: it must encode a text that is cut into parts as if it were whole."""
        return self.to_huggingface()

    def _prefix(self, text: str) -> str:
        """What is put before a document that begins with `text`."""
        return ""

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        import tokenizers

        with _no_panic():
            library = tokenizers.Tokenizer.from_str(json.dumps(self._computed))
        library.encode_special_tokens = True  # as text: a document cannot end itself
        return library

    @cached_property
    def can_be_cut(self) -> bool:  # type: ignore[override]
        return not any(_BORDER.search(piece.decode("utf-8", "ignore")) for piece in self.pieces)

    def encode_array(self, text: str, unknown: Unknown = "error", offset: int = 0) -> npt.NDArray[np.uint32]:
        """See `Tokenizer.encode_array`. A text that would not decode to itself raises UnknownText, too."""
        content = utf8(text, unknown, offset)
        if unknown == "skip":
            text = content.decode()
        length = len(text)
        if not offset and (prefix := self._prefix(text)):
            text, content = prefix + text, prefix.encode() + content
        (ids,) = self._encoded([text])
        if unknown == "error" and (decoded := self._joined(ids)) != content:
            same = next((i for i, (a, b) in enumerate(zip(decoded, content, strict=False)) if a != b), len(decoded))
            position = max(0, len(content[:same].decode("utf-8", "ignore")) - len(text) + length)
            given = text[len(text) - length :][position : position + 12]
            by, form = f" ({self.normalizer})" * bool(self.normalizer), self.normalizer
            convert = f"Convert the text to {form} first, or use" if form in ("NFC", "NFD") else "Use"
            raise UnknownText(
                f"This tokenizer changes the text{by}: {given!r} at position {offset + position} would not decode to "
                f"the same text. {convert} another tokenizer, such as byte or bpe, or accept this with --unknown skip "
                "(sample, chat, eval, serve)."
            )
        return np.array(ids, dtype=np.uint32)

    def encode_batch(self, texts: Sequence[str], unknown: Unknown = "error") -> tuple[UnsignedIds, list[int]]:
        """See `Tokenizer.encode_batch`. Each text must decode to itself, as in `encode_array`."""
        contents = [utf8(text, unknown) for text in texts]
        if unknown == "skip":
            texts = [content.decode() for content in contents]
        if self.puts_space_first:
            texts = [self._prefix(text) + text for text in texts]
            contents = [text.encode() for text in texts]
        encoded = self._encoded(texts)
        if unknown == "error" and list(map(self._joined, encoded)) != contents:
            return super().encode_batch(texts, unknown)  # which tells the place
        lengths = list(map(len, encoded))
        return np.fromiter(itertools.chain.from_iterable(encoded), np.uint32, sum(lengths)), lengths

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. The library encodes all together, on several cores if it may."""
        parts = [list(_parts(text)) if self.can_be_cut else [text] for text in texts]
        with _no_panic():
            encoded = self._library.encode_batch_fast([*itertools.chain.from_iterable(parts)], add_special_tokens=False)
        ids = (part.ids for part in encoded)
        return [list(itertools.chain.from_iterable(itertools.islice(ids, len(each)))) for each in parts]

    def _joined(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self.pieces.__getitem__, ids))

    def encode_chunks(
        self, chunks: Iterable[str], unknown: Unknown = "error", position: int = 0
    ) -> Iterator[npt.NDArray[np.uint32]]:
        """Ids of a document that comes in chunks: the same ids as for the whole.

        Memory does not grow with the document, unless the tokenizer has tokens that cross words: then the whole
        document is held. Text with no place to cut within 16 million characters is cut at the end of a chunk.
        """
        parts = _cut_at_borders(chunks) if self.can_be_cut else ["".join(chunks)]
        return super().encode_chunks(parts, unknown, position)


class BpeTokenizer(LibraryTokenizer):
    """GPT-2's byte-level BPE: split into words, then merge bytes, the most frequent pair first."""

    kind = "bpe"

    def __init__(self, vocabulary: Sequence[str], merges: Sequence[Sequence[str]]) -> None:
        """`vocabulary` is the tokens by id, in GPT-2's letters for bytes, with `<|endoftext|>` if there is one.
        `merges` is the pairs of tokens to merge, in order. Raises ValueError if the two do not fit together."""
        letters, known = set(BYTE_LETTERS), set(vocabulary)
        if len(known) < len(vocabulary) or not all(token and letters.issuperset(token) for token in vocabulary):
            raise ValueError("A BPE needs distinct tokens, in GPT-2's letters for bytes.")
        for pair in merges:
            if len(pair) != 2 or not known.issuperset([*pair, "".join(pair)]):
                raise ValueError(f"The merge {pair!r} must be two tokens that join to a third in the vocabulary.")
        self.vocabulary, self.merges = tuple(vocabulary), tuple((first, second) for first, second in merges)
        self.vocab_size = len(vocabulary)
        self.end_of_text_id = self.vocabulary.index(END_OF_TEXT) if END_OF_TEXT in known else None

    @classmethod
    def fit(cls, chunks: Iterable[str], vocab_size: int) -> BpeTokenizer:
        """Train on a text that comes in chunks. The same text gives the same tokenizer.

        The vocabulary is 256 bytes, merges of pairs that occur at least twice, and `<|endoftext|>`: at most
        `vocab_size` tokens. Memory grows with the number of different words.
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
        # A text without word borders must not become a single word of its own length.
        words = (
            part[i : i + 2 * _PART]
            for chunk in _cut_at_borders(chunks)
            for part in _parts(chunk)
            for i in range(0, len(part), 2 * _PART)
        )
        library.train_from_iterator(words, trainer)
        model = json.loads(library.to_str())["model"]
        return cls([*sorted(model["vocab"], key=model["vocab"].__getitem__), END_OF_TEXT], model["merges"])

    @cached_property
    def pieces(self) -> Sequence[bytes]:
        return [b"" if i == self.end_of_text_id else letters_to_bytes(token) for i, token in enumerate(self.vocabulary)]

    def to_dict(self) -> dict[str, Any]:
        definition = {"vocabulary": list(self.vocabulary), "merges": [list(pair) for pair in self.merges]}
        special = special_tokens(self.end_of_text_id)
        return {"kind": self.kind, "version": 1, **definition, "special_tokens": special}

    @classmethod
    def from_dict(cls, value: dict[str, Any], path: Path) -> BpeTokenizer:
        """The inverse of `to_dict`. Raises ValueError that names `path` if it is damaged."""
        vocabulary, merges = value.get("vocabulary"), value.get("merges")
        if value.get("version") != 1 or not (_are_strings(vocabulary) and isinstance(merges, list)):
            raise not_a_tokenizer(path)
        if not all(map(_are_strings, merges)):
            raise ValueError(f"{path} is damaged: its merges are not pairs of tokens.")
        return cls._restored(value, path, vocabulary, merges)

    def to_huggingface(self) -> dict[str, Any]:
        vocabulary = {token: i for i, token in enumerate(self.vocabulary)}
        return huggingface_bpe(vocabulary, self.merges, special_tokens(self.end_of_text_id), BYTE_LEVEL, BYTE_LEVEL)


@contextmanager
def _no_panic() -> Iterator[None]:
    """Turn a Rust panic of the library into a ValueError. PyO3's PanicException is not an Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"The library `tokenizers` failed: {error!s:.200}") from None


def _are_strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _cut_at_borders(chunks: Iterable[str]) -> Iterator[str]:
    """The same text, cut only at borders, or after `_LONGEST` characters without one."""
    held = ""
    for chunk in chunks:
        held += chunk
        if (last := _UP_TO_LAST_BORDER.match(held)) or len(held) >= _LONGEST:
            cut = last.end() if last else len(held)
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _parts(text: str) -> Iterator[str]:
    """Parts of about `_PART` characters that can be encoded one by one."""
    start = 0
    while len(text) - start > _PART and (found := _BORDER.search(text, start + _PART)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]
