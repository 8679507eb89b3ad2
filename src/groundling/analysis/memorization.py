"""Memorization: which parts of a sample are copied from the training text, and from where.

The training part is decoded and indexed by a suffix array: all its suffixes in sorted order, so that a binary search
finds any piece of text. The search runs on UTF-8 bytes, where no character occurs inside another; results are in
characters. A byte that UTF-8 does not use separates documents, so no span crosses from one into the next.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np

from groundling.data.corpus import Corpus
from groundling.data.mixture import Text, parts_of
from groundling.data.progress import Progress, silent

COPIED = 30  # characters from which a span of the training text counts as copied; shorter ones are normal language
MAX_BYTES = 100_000_000  # the longest text to index, in UTF-8; the index takes another four times as much memory
_TOO_LONG = f"The training text has more than {MAX_BYTES // 1_000_000} MB: too much to search for copies."
_BORDER = b"\xff"  # between documents; never occurs in UTF-8
_PIECE = 1 << 20  # tokens decoded at a time


@dataclass(frozen=True)
class Span:
    """A part of a sample that occurs verbatim in the training text, and its first place there.

    `start` and `stop` count characters of the sample. `position` counts characters from the start of the document, and
    `line` counts its lines from 1. `document` is its name, or number if names are unknown; None if the text is a single
    document. `times` is how often the span occurs.
    """

    start: int
    stop: int
    text: str
    document: str | None
    position: int
    line: int
    times: int


@dataclass(frozen=True)
class Originality:
    """What a sample copied.

    `where` is the longest span that occurs verbatim in the training text (None if no character does), and `longest` its
    length in characters. `spans` are the copied spans in order: 30 characters or more, none inside another. `share` is
    the share of the sample's `characters` in at least one of them.
    """

    characters: int
    longest: int
    share: float
    where: Span | None
    spans: tuple[Span, ...]


class TrainingText:
    """A training text, indexed once for many searches."""

    def __init__(self, documents: Iterable[str | bytes], names: Sequence[str] = ()) -> None:
        """Index `documents`, given as text or UTF-8, with optional `names`. 10 MB take about a second.

        Raises ValueError above 100 MB: a result for a part of the text could be mistaken for one for all of it.
        """
        from pydivsufsort import divsufsort

        encoded = [d if isinstance(d, bytes) else d.encode("utf-8", "surrogatepass") for d in documents]
        self._starts = [0, *accumulate(len(document) + 1 for document in encoded)][: len(encoded)]
        self._names = names
        self._text = _BORDER.join(encoded)
        if len(self._text) > MAX_BYTES:
            raise ValueError(_TOO_LONG)
        self._order = divsufsort(self._text)

    @classmethod
    def of(cls, text: Text, names: Sequence[str] = (), progress: Progress = silent) -> TrainingText:
        """Index the training part of a text, or those of a mixture. Raises ValueError if they have more than 100 MB."""
        documents, size, done, tokens = list[bytes](), 0, 0, sum(len(part.corpus.train) for part in parts_of(text))
        for part in parts_of(text):
            unfinished = list[bytes]()
            for piece, ends, read in _pieces(part.corpus):
                unfinished.append(piece)
                size += len(piece)
                if size > MAX_BYTES:
                    raise ValueError(_TOO_LONG)
                if ends:
                    documents.append(b"".join(unfinished))
                    unfinished = []
                progress("reading back", size, round(size * tokens / (done + read)))
            documents += [b"".join(unfinished)] if unfinished else []
            done += len(part.corpus.train)
        progress("indexing", 0, size)
        return cls(documents, names)

    def report(self, sample: str) -> Originality:
        """What `sample` copied from the text. Leave out the prompt, which the model did not generate."""
        longest, copied = (0, 0), list[tuple[int, int]]()
        stop = 0
        for start in range(len(sample)):
            # A shorter span is inside the one before, or is neither copied nor the longest.
            least = max(stop + 1 - start, min(COPIED, longest[1] - longest[0] + 1))
            if start + least > len(sample):
                break
            if not self._find(sample[start : start + least])[0]:
                continue
            # If a span occurs in the text, so do its beginnings. So bisect for the first end that does not.
            more = range(start + least + 1, len(sample) + 1)
            stop = start + least + bisect_left(more, True, key=lambda end: not self._find(sample[start:end])[0])
            longest = max(longest, (start, stop), key=lambda span: span[1] - span[0])
            if stop - start >= COPIED:
                copied.append((start, stop))
        covered = np.zeros(len(sample), dtype=bool)
        for start, stop in copied:
            covered[start:stop] = True
        return Originality(
            characters=len(sample),
            longest=longest[1] - longest[0],
            share=float(covered.mean()) if sample else 0.0,
            where=self._span(sample, *longest) if longest[1] else None,
            spans=tuple(self._span(sample, *span) for span in copied),
        )

    def _find(self, piece: str) -> tuple[int, int]:
        """How often `piece` occurs in the text, and where its places begin in the suffix array."""
        from pydivsufsort import sa_search

        times, first = sa_search(self._text, self._order, piece.encode("utf-8", "surrogatepass"))
        return times, first or 0

    def _span(self, sample: str, start: int, stop: int) -> Span:
        times, first = self._find(sample[start:stop])
        place = int(self._order[first : first + times].min())
        document = bisect_right(self._starts, place) - 1
        begin = self._starts[document]
        before = np.frombuffer(self._text, np.int8, place - begin, begin)
        name = self._names[document] if document < len(self._names) else f"document {document + 1:,}"
        return Span(
            start=start,
            stop=stop,
            text=sample[start:stop],
            document=name if len(self._starts) > 1 else None,
            position=int(np.count_nonzero(before >= -64)),  # all bytes that start a character
            line=self._text.count(b"\n", begin, place) + 1,
            times=times,
        )


S = TypeVar("S", Span, slice)


def parts(sample: str, spans: Sequence[S]) -> Iterator[tuple[str, S | None]]:
    """Split `sample` into pieces, each with its copied span or None: for coloring.

    If two spans overlap, the first one ends where the next begins.
    """
    done = 0
    for span, following in zip(spans, [*spans[1:], None], strict=False):  # no spans, no pairs
        if span.start > done:
            yield sample[done : span.start], None
        done = span.stop if following is None else min(span.stop, following.start)
        yield sample[span.start : done], span
    if done < len(sample):
        yield sample[done:], None


def training_documents(corpus: Corpus) -> int:
    """The number of documents of the training part. The last one may end in the validation part."""
    return int(np.searchsorted(corpus.document_ends, len(corpus.train)) + 1)


def _pieces(corpus: Corpus) -> Iterator[tuple[bytes, bool, int]]:
    """Yield the training part in pieces of UTF-8, each with whether a document ends there, and how many tokens are
    read."""
    tokens, bytes_of, ends, ended = corpus.train, corpus.tokenizer.decode_bytes, corpus.document_ends, 0
    for start in range(0, len(tokens), _PIECE):
        stop = min(start + _PIECE, len(tokens))
        ending = int(np.searchsorted(ends, stop, side="right"))
        *documents, rest = np.split(tokens.read(start, stop), ends[ended:ending] - start)
        ended = ending
        for document in documents:
            yield bytes_of(document), True, stop
        if len(rest):
            yield bytes_of(rest), False, stop
