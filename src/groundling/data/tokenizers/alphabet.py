"""The different characters of a text, their ids by table, and a text as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

UNKNOWN = 2**32 - 1
_NO_ASCII = 0xFF  # more than the ids of ASCII, which come first
_HELD = 2**16  # characters looked at together: NumPy takes as long for a word as for a page


class UnknownText(ValueError):
    """Text that a tokenizer cannot encode."""


class Alphabet:
    """Collects the characters of a text that comes in chunks. Memory does not grow with the text."""

    def __init__(self) -> None:
        self._seen = np.zeros(0x110000, dtype=bool)
        self._ascii = b""  # that was seen
        self._held, self._n_held = list[str](), 0

    def add(self, chunk: str) -> None:
        self._held.append(chunk)
        self._n_held += len(chunk)
        if self._n_held > _HELD:
            self._look()

    @property
    def characters(self) -> str:
        """All that occurred, in the order of their code points."""
        self._look()
        return "".join(map(chr, np.flatnonzero(self._seen).tolist()))

    def _look(self) -> None:
        new = "".join(self._held).encode("utf-8", "surrogatepass").translate(None, self._ascii)
        self._held, self._n_held = [], 0
        if new:
            self._seen[code_points(new.decode("utf-8", "surrogatepass"))] = True
            self._ascii = bytes(np.flatnonzero(self._seen[:128]).tolist())


class IdTable:
    """The place of each character in a sorted vocabulary, `UNKNOWN` for others."""

    def __init__(self, characters: Sequence[str]) -> None:
        codes = np.array([ord(c) for c in characters], dtype=np.int64)
        self._ids = np.full(max(128, codes.max(initial=0) + 2), UNKNOWN, dtype=np.uint32)  # the last for all above
        self._ids[codes] = np.arange(len(codes))
        self._ascii = np.minimum(self._ids[:128], _NO_ASCII).astype(np.uint8).tobytes() + bytes(128)

    def __getitem__(self, text: str) -> npt.NDArray[np.uint32]:
        if text.isascii() and _NO_ASCII not in (ids := text.encode().translate(self._ascii)):
            return np.frombuffer(ids, np.uint8).astype(np.uint32)
        return self._ids.take(code_points(text), mode="clip")


def utf8(text: str, unknown: str = "error", offset: int = 0) -> bytes:
    """`text` in UTF-8. A lone surrogate raises UnknownText with its position from `offset`, or is dropped."""
    try:
        return text.encode("utf-8", "ignore" if unknown == "skip" else "strict")
    except UnicodeEncodeError as error:
        raise UnknownText(
            f"The text has a lone surrogate (U+{ord(text[error.start]):04X}) at position {offset + error.start}: half "
            "of a UTF-16 pair, not a character. Remove it."
        ) from None


def code_points(text: str) -> npt.NDArray[np.uint32]:
    # `surrogatepass`: a lone surrogate is an unknown character, not a codec's error.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
