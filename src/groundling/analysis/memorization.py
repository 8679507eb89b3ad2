"""Did it copy? What of a sample stands verbatim in the training text, and where.

The training part is read back from its tokens and indexed by a suffix array: all its suffixes in sorted order, so that
a binary search finds any piece of text in it. It is searched as UTF-8, in which no character is found inside of
another; what is told is in characters. Documents are kept apart by a byte that UTF-8 does not have, so that no span
crosses from one into the next.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, TypeVar

import numpy as np

from groundling.data.corpus import Corpus
from groundling.data.progress import Progress, silent

COPIED = 30
"""Characters from which on a span that stands in the training text counts as copied. Shorter ones are the language."""
MAX_BYTES = 100_000_000
"""The longest training text that is indexed, in bytes of UTF-8. The index takes four times as much memory again."""

_BORDER = b"\xff"  # between documents: occurs nowhere in UTF-8
_PIECE = 1 << 20  # tokens that are read back at a time


@dataclass(frozen=True)
class Span:
    """A part of a sample that stands verbatim in the training text, and where it stands there first.

    `start` and `stop` are in characters of the sample. `position` is in characters from the document's beginning, and
    `line` its line there, from 1 on. `document` is None where the text is a single one, else its name, or its number
    where names are not known. `times` is how often the text holds the span.
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

    `longest` is the length in characters of the longest span that stands verbatim in the training text, and `where`
    that span (None if not even one character does). `spans` are the copied ones, of 30 characters or more, none inside
    of another, in their order. `share` is the share of the sample's `characters` that stand in at least one of them.
    """

    characters: int
    longest: int
    share: float
    where: Span | None
    spans: tuple[Span, ...]


class TrainingText:
    """A training text, indexed once and asked many times."""

    def __init__(self, documents: Iterable[str | bytes], names: Sequence[str] = ()) -> None:
        """Index `documents`; bytes are UTF-8. `names` are theirs, if they have any.

        10 MB take about a second. Raises ValueError if they have more than 100 MB: a figure for a part of a text would
        be taken for one for all of it.
        """
        from pydivsufsort import divsufsort

        encoded = [d if isinstance(d, bytes) else d.encode("utf-8", "surrogatepass") for d in documents]
        self._starts = [0, *accumulate(len(document) + 1 for document in encoded)][: len(encoded)]
        self._names = names
        self._text = _BORDER.join(encoded)
        if len(self._text) > MAX_BYTES:
            raise _too_long()
        self._order = divsufsort(self._text)

    @classmethod
    def of(cls, corpus: Corpus, names: Sequence[str] = (), progress: Progress = silent) -> TrainingText:
        """The training part of `corpus`. Raises ValueError if it has more than 100 MB."""
        documents, unfinished, size = list[bytes](), list[bytes](), 0
        for piece, ends, share in _pieces(corpus):
            unfinished.append(piece)
            size += len(piece)
            if size > MAX_BYTES:
                raise _too_long()
            if ends:
                documents.append(b"".join(unfinished))
                unfinished = []
            progress("reading back", size, round(size / share))
        progress("indexing", 0, size)
        return cls([*documents, b"".join(unfinished)] if unfinished else documents, names)

    def report(self, sample: str) -> Originality:
        """What of `sample` (without its prompt, which the model did not write) stands in the text."""
        longest, copied = (0, 0), list[tuple[int, int]]()
        stop = 0
        for start in range(len(sample)):
            # Whatever is shorter lies inside of the span before, or is neither copied nor the longest.
            least = max(stop + 1 - start, min(COPIED, longest[1] - longest[0] + 1))
            if start + least > len(sample):
                break
            if not self._find(sample[start : start + least])[0]:
                continue
            # What stands there, stands there without its end too: the first length that does not is searched for.
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
        """How often `piece` stands in the text, and where in the order of the suffixes its places begin."""
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
            position=int(np.count_nonzero(before >= -64)),  # all bytes but those that continue a character
            line=self._text.count(b"\n", begin, place) + 1,
            times=times,
        )


class Extent(Protocol):
    """A part of a sample, such as a `Span` or a `slice`."""

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...


S = TypeVar("S", bound=Extent)


def parts(sample: str, spans: Sequence[S]) -> Iterator[tuple[str, S | None]]:
    """`sample` in order, piece by piece, each with the copied span that it belongs to: to colour it.

    Where two spans overlap, the first one ends where the next begins.
    """
    done = 0
    for span, following in zip(spans, [*spans[1:], None], strict=False):  # no spans, no pairs
        if span.start > done:
            yield sample[done : span.start], None
        done = span.stop if following is None else min(span.stop, following.start)
        yield sample[span.start : done], span
    if done < len(sample):
        yield sample[done:], None


def _pieces(corpus: Corpus) -> Iterator[tuple[bytes, bool, float]]:
    """The training part in UTF-8, in pieces, each with whether a document ends there and the share that is done."""
    tokens, bytes_of, ends, ended = corpus.train, corpus.tokenizer.decode_bytes, corpus.document_ends, 0
    for start in range(0, len(tokens), _PIECE):
        stop = min(start + _PIECE, len(tokens))
        ending = int(np.searchsorted(ends, stop, side="right"))
        *documents, rest = np.split(tokens.read(start, stop), ends[ended:ending] - start)
        ended = ending
        for document in documents:
            yield bytes_of(document), True, stop / len(tokens)
        if len(rest):
            yield bytes_of(rest), False, stop / len(tokens)


def _too_long() -> ValueError:
    return ValueError(
        f"The training text has more than {MAX_BYTES // 1_000_000} MB, and copies are searched for in texts of up to "
        "that size only."
    )
