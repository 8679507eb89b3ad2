"""Lines and paragraphs that stand in a text more than once, and documents or paragraphs that nearly do.

What is repeated is learned by heart first. Equal ones are found by 64-bit hashes; those that resemble each other by
MinHash (Broder, "On the resemblance and containment of documents", 1997) over windows of characters, which suits every
script, and candidates are then compared exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from groundling.checkup.text import I64, PIECE, Place, Text
from groundling.data.hashing import U64, mix, window_hashes

LINE_CHARACTERS = 20
"""Shorter lines repeat by nature: names, numbers, brackets."""
UNIT_CHARACTERS = 80
"""Shorter paragraphs and documents are not compared."""
RESEMBLANCE = 0.8
"""Share of windows in common (Jaccard) from which on two are near-duplicates."""
CHARACTERS = 100_000_000
"""In a longer text, duplicates are looked for in its first so many characters only."""
_SHINGLE = 8  # characters in a window
_PERMUTATIONS, _BANDS, _SEED = 64, 16, 1  # finds 99.9 % of those that resemble each other by 0.8
_COMPARED = 10_000  # pairs at most
_LONG_PARAGRAPH = 20_000  # mean length from which on blank lines are not what divides the text
_WORST, _QUOTED, _PLACES = 5, 80, 3


@dataclass(frozen=True)
class Repeated:
    """One line or paragraph that stands in several places."""

    count: int
    quote: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Repeats:
    """`units` (lines, paragraphs, documents) were compared, and `repeated` of them equal an earlier one."""

    unit: str
    units: int
    repeated: int
    share: float
    """Of the units' characters, those in repeated ones."""
    worst: tuple[Repeated, ...]


@dataclass(frozen=True)
class Pair:
    """Two that resemble each other."""

    resemblance: float
    first: Place
    second: Place
    quote: str


@dataclass(frozen=True)
class NearRepeats:
    """`repeated` units resemble an earlier one without being equal to it."""

    unit: str
    units: int
    repeated: int
    share: float
    worst: tuple[Pair, ...]
    complete: bool
    """Whether all candidates were compared; if not, there are more than `repeated`."""


@dataclass(frozen=True)
class Duplicates:
    """What is repeated in a text."""

    exact: tuple[Repeats, ...]
    near: NearRepeats
    sampled: bool
    """Whether only a part of the text was looked at."""


@dataclass(frozen=True)
class _Units:
    """Stretches of the text by position, each with a hash of what stands in it."""

    name: str
    starts: I64
    stops: I64
    hashes: I64

    def chosen(self, which: npt.NDArray[np.bool_]) -> _Units:
        return _Units(self.name, self.starts[which], self.stops[which], self.hashes[which])

    @property
    def lengths(self) -> I64:
        return self.stops - self.starts


def duplicates(text: Text) -> Duplicates:
    """Compare the text's lines, its paragraphs, and its documents if it has several."""
    lines, blank = _lines(text)
    begins = np.isin(lines.starts, np.append(0, text.ends))  # of documents
    paragraphs = _joined(lines, ~blank, np.append(True, blank[:-1]) | begins, "paragraph")
    long_lines = lines.chosen(lines.lengths >= LINE_CHARACTERS)
    exact = [_repeats(text, long_lines)]
    unit = long_lines
    if len(paragraphs.starts) and paragraphs.lengths.mean() < _LONG_PARAGRAPH:
        unit = paragraphs.chosen(paragraphs.lengths >= UNIT_CHARACTERS)
        exact.append(_repeats(text, unit))
    if text.corpus.n_documents > 1:
        documents = _joined(lines, ~blank, begins, "document")
        unit = documents.chosen(documents.lengths >= UNIT_CHARACTERS)
        exact.append(_repeats(text, unit))
    return Duplicates(tuple(exact), _near(text, unit), text.length > CHARACTERS)


def _lines(text: Text) -> tuple[_Units, npt.NDArray[np.bool_]]:
    """All lines, without white space at their ends, and which of them are empty."""
    starts, lengths, hashes = list[I64](), list[I64](), list[I64]()
    rest, begin = "", 0  # of the line that the piece before did not end
    for position, ids in text.pieces("looking for repeats in"):
        if position >= CHARACTERS:
            break
        lines = (rest + text.string(ids)).split("\n")
        more = position + PIECE < min(text.length, CHARACTERS)
        rest = lines.pop() if more and len(lines) > 1 else ""  # a line longer than a piece is cut
        n = len(lines)
        length = np.fromiter(map(len, lines), np.int64, n)
        starts.append(begin + np.cumsum(length + 1) - length - 1)
        begin = position + len(ids) - len(rest)
        stripped = [line.strip() for line in lines]
        lengths.append(np.fromiter(map(len, stripped), np.int64, n))
        hashes.append(np.fromiter(map(hash, stripped), np.int64, n))
    start, length = np.concatenate(starts), np.concatenate(lengths)
    return _Units("line", start, start + length, np.concatenate(hashes)), length == 0


def _joined(lines: _Units, kept: npt.NDArray[np.bool_], begins: npt.NDArray[np.bool_], name: str) -> _Units:
    """Units of the kept lines; a new one begins where `begins` says so."""
    groups = np.cumsum(begins)[kept]
    firsts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])) if len(groups) else np.empty(0, np.int64)
    lasts = np.append(firsts[1:], len(groups))[: len(firsts)] - 1
    within = np.arange(len(groups)) - np.repeat(firsts, np.diff(np.append(firsts, len(groups))))
    hashes = mix(lines.hashes[kept].astype(np.uint64) + mix(within.astype(np.uint64)))  # in their order
    sums = np.add.reduceat(hashes, firsts) if len(firsts) else hashes
    return _Units(name, lines.starts[kept][firsts], lines.stops[kept][lasts], sums.astype(np.int64))


def _repeats(text: Text, units: _Units) -> Repeats:
    total = int(units.lengths.sum())
    kinds, firsts, counts = np.unique(units.hashes, return_index=True, return_counts=True)
    repeated = np.ones(len(units.starts), dtype=bool)
    repeated[firsts] = False
    worst = []
    cost = (counts - 1) * units.lengths[firsts]  # characters that would be saved
    for i in np.lexsort((firsts, -cost))[:_WORST]:
        if counts[i] < 2:
            break
        places = units.starts[units.hashes == kinds[i]][:_PLACES].tolist()
        worst.append(Repeated(int(counts[i]), _quote(text, units, int(firsts[i])), tuple(text.places(places))))
    share = float(units.lengths[repeated].sum()) / max(total, 1)
    return Repeats(units.name, len(units.starts), int(repeated.sum()), share, tuple(worst))


def _quote(text: Text, units: _Units, i: int) -> str:
    length = int(units.lengths[i])
    return text.quote(int(units.starts[i]), min(length, _QUOTED)).strip() + ("…" if length > _QUOTED else "")


def _near(text: Text, units: _Units) -> NearRepeats:
    _, firsts = np.unique(units.hashes, return_index=True)
    distinct = np.zeros(len(units.starts), dtype=bool)
    distinct[firsts] = True
    kept = units.chosen(distinct)
    pairs = []
    candidates = _candidates(_sketches(text, kept))
    for i, j in candidates[:_COMPARED]:
        resemblance = _resemblance(text, kept, i, j)
        if resemblance >= RESEMBLANCE:
            pairs.append((resemblance, i, j))
    later = sorted({j for _, _, j in pairs})
    pairs.sort(key=lambda pair: (-int(kept.lengths[pair[2]] * pair[0]), pair[1], pair[2]))
    worst = []
    for resemblance, i, j in pairs[:_WORST]:
        first, second = text.places([int(kept.starts[i]), int(kept.starts[j])])
        worst.append(Pair(resemblance, first, second, _quote(text, kept, j)))
    share = float(kept.lengths[later].sum()) / max(int(units.lengths.sum()), 1)
    return NearRepeats(units.name, len(units.starts), len(later), share, tuple(worst), len(candidates) <= _COMPARED)


def _sketches(text: Text, units: _Units) -> npt.NDArray[np.uint32]:
    """MinHash signatures, shape (units, _PERMUTATIONS)."""
    from rensa import RMinHash

    signatures = [np.empty((0, _PERMUTATIONS), dtype=np.uint32)]
    for begin, end in _batches(units):
        text.progress("comparing the parts of", int(units.starts[begin]), text.length)
        base, stop = int(units.starts[begin]), int(units.stops[end - 1])
        if stop - base > PIECE:
            hashes = np.concatenate([_thinned(text, at, min(at + PIECE, stop)) for at in range(base, stop, PIECE)])
            offsets = np.array([0, len(hashes)])
        else:
            lengths = units.lengths[begin:end] - _SHINGLE + 1
            offsets = np.append(0, np.cumsum(lengths))
            places = np.repeat(units.starts[begin:end] - base - offsets[:-1], lengths) + np.arange(offsets[-1])
            hashes = window_hashes(text.read(base, stop), _SHINGLE)[places]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            mix(hashes), offsets.astype(np.uint64), _PERMUTATIONS, _SEED
        )
        signatures.append(np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, _PERMUTATIONS))
    text.progress("comparing the parts of", text.length, text.length)
    return np.concatenate(signatures)


def _thinned(text: Text, start: int, stop: int) -> U64:
    """Every sixteenth window of a part of a long unit, the same ones wherever the same text stands."""
    hashes = window_hashes(text.read(start, stop), _SHINGLE)
    return hashes[hashes & np.uint64(15) == 0]


def _batches(units: _Units) -> Iterator[tuple[int, int]]:
    """Ranges of units that lie within PIECE characters, or a single longer one."""
    begin = 0
    while begin < len(units.starts):
        end = int(np.searchsorted(units.stops, units.starts[begin] + PIECE, side="right"))
        yield begin, max(end, begin + 1)
        begin = max(end, begin + 1)


def _candidates(signatures: npt.NDArray[np.uint32]) -> list[tuple[int, int]]:
    """Pairs of units that agree in a band of their signatures, those that agree in most bands first."""
    n = len(signatures)
    found = [np.empty(0, dtype=np.int64)]
    for band in np.split(signatures, _BANDS, axis=1):
        keys = np.zeros(n, dtype=np.uint64)
        for column in band.T:
            keys = mix(keys + column.astype(np.uint64) + np.uint64(1))
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        found.append(order[same] * n + order[same + 1])
    pairs, bands = np.unique(np.concatenate(found), return_counts=True)
    pairs = pairs[np.argsort(-bands, kind="stable")]
    return list(zip((pairs // max(n, 1)).tolist(), (pairs % max(n, 1)).tolist(), strict=True))


def _resemblance(text: Text, units: _Units, i: int, j: int) -> float:
    """Jaccard's measure of the two units' sets of windows, those of their first PIECE characters."""
    one, other = (_windows(text, int(units.starts[k]), int(units.stops[k])) for k in (i, j))
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / max(len(one) + len(other) - common, 1)


def _windows(text: Text, start: int, stop: int) -> U64:
    hashes = window_hashes(text.read(start, min(stop, start + PIECE)), _SHINGLE)
    return np.unique(hashes)
