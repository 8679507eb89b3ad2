"""The characters of a corpus: read in pieces, quoted, and located by document and line.

They come from the file of character tokens (data/corpus.py), so a text of gigabytes takes little memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from groundling.data.corpus import Corpus
from groundling.data.progress import Progress
from groundling.data.sources import Source
from groundling.data.tokenizers.base import CharTokenizer

PIECE = 1 << 22  # characters read at once

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Place:
    """A document and a line in it. Lines count from 1 and end with a line feed."""

    document: str
    line: int

    def __str__(self) -> str:
        return f"{self.document}, line {self.line:,}"


def said(places: Iterable[Place]) -> str:
    """Such as `a.txt, line 3, 1,200; b.txt, line 7`."""
    lines: dict[str, list[str]] = {}
    for place in places:
        lines.setdefault(place.document, []).append(f"{place.line:,}")
    return "; ".join(f"{document}, line {', '.join(numbers)}" for document, numbers in lines.items())


class Text:
    """The characters of a character-level `corpus`, with document names from `source`.

    A position counts tokens from the start: characters, and an end mark after each document if there are several.
    """

    def __init__(self, corpus: Corpus, source: Source, progress: Progress) -> None:
        assert isinstance(corpus.tokenizer, CharTokenizer)
        self.corpus, self.source = corpus, source
        self.split_point, self.length = corpus.train.stop, corpus.validation.stop
        self.ends = corpus.document_ends
        """Where each document ends, including its end mark; shape (documents,)."""
        self.characters = corpus.tokenizer.characters
        self.progress = progress
        self._tokens = dataclasses.replace(corpus.train, stop=self.length)
        # An end mark reads as a line feed.
        self._codes = np.array([ord(c) for c in self.characters + "\n"], dtype=np.uint32)
        feed = self.id_of("\n")
        self._line_feed = np.iinfo(corpus.train.dtype).max if feed is None else feed

    def id_of(self, character: str) -> int | None:
        place = self.characters.find(character)
        return None if place < 0 else place

    def read(self, start: int, stop: int) -> Ids:
        """Character ids at the positions [start, stop)."""
        return self._tokens.stored(start, stop)

    def windows(self, starts: I64, length: int) -> I64:
        """Character ids at `starts[i] ... starts[i] + length - 1`."""
        return self._tokens.windows(starts, length)

    def pieces(self, doing: str, more: int = 0) -> Iterator[tuple[int, Ids]]:
        """Pieces of PIECE characters with their positions, each plus up to `more` characters of the next.

        `doing` is shown as progress, as in "counting the text".
        """
        for position in range(0, self.length, PIECE):
            self.progress(doing, position, self.length)
            yield position, self.read(position, min(position + PIECE + more, self.length))
        self.progress(doing, self.length, self.length)

    def string(self, ids: Ids) -> str:
        return self._codes[ids].tobytes().decode("utf-32-le")

    def quote(self, start: int, length: int) -> str:
        return self.string(self.read(start, min(start + length, self.length)))

    def places(self, positions: list[int]) -> list[Place]:
        """Document and line of each position."""
        found = []
        for position in positions:
            document = int(np.searchsorted(self.ends, position, side="right"))
            begin = int(self.ends[document - 1]) if document else 0
            line = 1 + self._lines_before(position) - self._lines_before(begin)
            found.append(Place(self.corpus.document_name(self.source, document), line))
        return found

    def _lines_before(self, position: int) -> int:
        block = position // PIECE
        rest = self.read(block * PIECE, position)
        return int(self._line_counts[block]) + int(np.count_nonzero(rest == self._line_feed))

    @cached_property
    def _line_counts(self) -> I64:
        """Line feeds before each block of PIECE characters."""
        blocks = [0, *(np.count_nonzero(ids == self._line_feed) for _, ids in self.pieces("counting lines of"))]
        return np.cumsum(np.array(blocks, dtype=np.int64))
