"""Repeated lines, paragraphs and documents, and near-duplicate paragraphs or documents.

Models memorize repeated text first. Equal units are found by 64-bit hashes. Candidates for near-duplicates are found by
MinHash (Broder, "On the resemblance and containment of documents", 1997) over windows of characters, which suits every
script, and are then compared exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from groundling.checkup.text import I64, PIECE, Bools, Place, Text
from groundling.data.hashing import U64, mix, window_hashes

LINE_CHARACTERS = 20  # shorter lines are ignored, since names, numbers and brackets repeat naturally
UNIT_CHARACTERS = 80  # shorter paragraphs and documents are not compared
RESEMBLANCE = 0.8  # the share of windows in common (Jaccard) from which two units are near-duplicates
CHARACTERS = 100_000_000  # of a longer text, only this many at the start are searched
_SHINGLE = 8  # characters in a window
_PERMUTATIONS, _BANDS, _SEED = 64, 16, 1  # finds 99.9 % of the pairs with a resemblance of 0.8
_COMPARED = 10_000  # pairs at most
_LONG_PARAGRAPH = 20_000  # mean length from which blank lines do not separate paragraphs
_WORST, _QUOTED, _PLACES = 5, 80, 3


@dataclass(frozen=True)
class Repeated:
    """One line, paragraph or document that occurs several times."""

    count: int
    quote: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Repeats:
    """Of `units` lines, paragraphs or documents, `repeated` equal an earlier one."""

    unit: str
    units: int
    repeated: int
    share: float  # of the characters of all units, those in repeated ones
    worst: tuple[Repeated, ...]


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates."""

    resemblance: float
    first: Place
    second: Place
    quote: str


@dataclass(frozen=True)
class NearRepeats:
    """Of `units` units, `repeated` resemble an earlier one without being equal to it."""

    unit: str
    units: int
    repeated: int
    share: float
    worst: tuple[Pair, ...]
    complete: bool  # whether all candidates were compared; if not, there are more than `repeated`


@dataclass(frozen=True)
class Duplicates:
    """The repeats of a text."""

    exact: tuple[Repeats, ...]
    near: NearRepeats
    sampled: bool  # whether only a part of the text was searched


@dataclass(frozen=True)
class _Units:
    """Stretches of the text: start and stop positions, and hashes of the content."""

    name: str
    starts: I64
    stops: I64
    hashes: I64

    def chosen(self, which: Bools | I64) -> _Units:
        return _Units(self.name, self.starts[which], self.stops[which], self.hashes[which])

    @property
    def lengths(self) -> I64:
        return self.stops - self.starts


def duplicates(text: Text) -> Duplicates:
    """Compare the lines of the text, its paragraphs, and its documents if there are several."""
    lines, blank = _lines(text)
    begins = np.isin(lines.starts, np.append(0, text.ends))  # of documents
    compared = [lines.chosen(lines.lengths >= LINE_CHARACTERS)]
    paragraphs = _joined(lines, ~blank, np.append(True, blank[:-1]) | begins, "paragraph")
    if len(paragraphs.starts) and paragraphs.lengths.mean() < _LONG_PARAGRAPH:
        compared.append(paragraphs.chosen(paragraphs.lengths >= UNIT_CHARACTERS))
    if text.corpus.n_documents > 1:
        documents = _joined(lines, ~blank, begins, "document")
        compared.append(documents.chosen(documents.lengths >= UNIT_CHARACTERS))
    exact = tuple(_repeats(text, units) for units in compared)
    return Duplicates(exact, _near(text, compared[-1]), text.length > CHARACTERS)


def _lines(text: Text) -> tuple[_Units, Bools]:
    """All lines, without white space at their ends, and which of them are empty."""
    starts, lengths, hashes = list[I64](), list[I64](), list[I64]()
    rest, begin = "", 0  # of the last line of the piece before
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


def _joined(lines: _Units, kept: Bools, begins: Bools, name: str) -> _Units:
    """Units made of the kept lines. A new one starts where `begins` is True."""
    groups = np.cumsum(begins)[kept]
    firsts = np.flatnonzero(np.diff(groups, prepend=-1))
    ends = np.append(firsts[1:], len(groups))[: len(firsts)]
    within = np.arange(len(groups)) - np.repeat(firsts, ends - firsts)
    hashes = mix(lines.hashes[kept].astype(np.uint64) + mix(within.astype(np.uint64)))  # order matters
    sums = np.add.reduceat(hashes, firsts) if len(firsts) else hashes
    return _Units(name, lines.starts[kept][firsts], lines.stops[kept][ends - 1], sums.astype(np.int64))


def _repeats(text: Text, units: _Units) -> Repeats:
    kinds, firsts, counts = np.unique(units.hashes, return_index=True, return_counts=True)
    worst = []
    cost = (counts - 1) * units.lengths[firsts]  # characters that removing them would save
    for i in np.lexsort((firsts, -cost))[:_WORST]:
        if counts[i] < 2:
            break
        places = units.starts[units.hashes == kinds[i]][:_PLACES].tolist()
        worst.append(Repeated(int(counts[i]), _quote(text, units, int(firsts[i])), tuple(text.places(places))))
    share = float(units.lengths.sum() - units.lengths[firsts].sum()) / max(int(units.lengths.sum()), 1)
    return Repeats(units.name, len(units.starts), len(units.starts) - len(firsts), share, tuple(worst))


def _quote(text: Text, units: _Units, i: int) -> str:
    length = int(units.lengths[i])
    return text.quote(int(units.starts[i]), min(length, _QUOTED)).strip() + ("…" if length > _QUOTED else "")


def _near(text: Text, units: _Units) -> NearRepeats:
    _, firsts = np.unique(units.hashes, return_index=True)
    kept = units.chosen(np.sort(firsts))
    candidates = _candidates(_sketches(text, kept))
    compared = [(_resemblance(text, kept, i, j), i, j) for i, j in candidates[:_COMPARED]]
    pairs = [pair for pair in compared if pair[0] >= RESEMBLANCE]
    pairs.sort(key=lambda pair: (-int(kept.lengths[pair[2]] * pair[0]), pair[1], pair[2]))
    worst = []
    for resemblance, i, j in pairs[:_WORST]:
        first, second = text.places([int(kept.starts[i]), int(kept.starts[j])])
        worst.append(Pair(resemblance, first, second, _quote(text, kept, j)))
    later = sorted({j for _, _, j in pairs})
    share = float(kept.lengths[later].sum()) / max(int(units.lengths.sum()), 1)
    return NearRepeats(units.name, len(units.starts), len(later), share, tuple(worst), len(candidates) <= _COMPARED)


def _sketches(text: Text, units: _Units) -> npt.NDArray[np.uint32]:
    """MinHash signatures, shape (units, _PERMUTATIONS)."""
    from rensa import RMinHash

    signatures = [np.empty((0, _PERMUTATIONS), dtype=np.uint32)]
    begin = 0
    while begin < len(units.starts):  # for as many units as lie within PIECE characters, or a single longer one
        end = max(int(np.searchsorted(units.stops, units.starts[begin] + PIECE, side="right")), begin + 1)
        base, stop = int(units.starts[begin]), int(units.stops[end - 1])
        text.progress("comparing the parts of", base, text.length)
        if stop - base > PIECE:
            hashes = np.concatenate([_thinned(text, at, min(at + PIECE, stop)) for at in range(base, stop, PIECE)])
            offsets = np.array([0, len(hashes)])
        else:
            lengths = units.lengths[begin:end] - _SHINGLE + 1
            offsets = np.append(0, np.cumsum(lengths))
            places = np.repeat(units.starts[begin:end] - base - offsets[:-1], lengths) + np.arange(offsets[-1])
            hashes = window_hashes(text.read(base, stop), _SHINGLE)[places]
        digest = RMinHash.digest_matrix_from_flat_token_hashes
        matrix = digest(mix(hashes), offsets.astype(np.uint64), _PERMUTATIONS, _SEED)
        signatures.append(np.array(matrix.to_rows(), dtype=np.uint32).reshape(-1, _PERMUTATIONS))
        begin = end
    text.progress("comparing the parts of", text.length, text.length)
    return np.concatenate(signatures)


def _thinned(text: Text, start: int, stop: int) -> U64:
    """A sixteenth of the windows in part of a long unit, chosen by hash: the same ones wherever the text repeats."""
    hashes = window_hashes(text.read(start, stop), _SHINGLE)
    return hashes[hashes & np.uint64(15) == 0]


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
    return [divmod(pair, n) for pair in pairs.tolist()]


def _resemblance(text: Text, units: _Units, i: int, j: int) -> float:
    """The Jaccard similarity of two units' sets of windows, in their first PIECE characters."""
    one, other = (
        np.unique(window_hashes(text.read(start, min(stop, start + PIECE)), _SHINGLE))
        for start, stop in zip(units.starts[[i, j]].tolist(), units.stops[[i, j]].tolist(), strict=True)
    )
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / max(len(one) + len(other) - common, 1)
