"""Leakage: how much of the validation part stands verbatim in the training part.

A model that has read its examination scores well in it. Here every window of 50 characters of the validation part is
looked up among all of the training part: by 64-bit hashes, and then character by character, so that what is reported
is so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from groundling.analysis.leakage import WINDOW, filter_of, slots
from groundling.checkup.text import I64, PIECE, Place, Text
from groundling.data.hashing import U64, window_hashes

VALIDATION_CHARACTERS = 10_000_000
"""Of a longer validation part, the first so many characters are looked up."""
TRAINING_CHARACTERS = 100_000_000
"""A longer training part is read in evenly spread pieces: what is found is then a lower bound."""
_WORST, _QUOTED = 5, 120
_VERIFIED = 1 << 16  # windows compared at once

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Passage:
    """A stretch of the validation part, each window of which stands in the training part."""

    characters: int
    validation: Place
    training: Place
    """Where its beginning stands in the training part."""
    quote: str


@dataclass(frozen=True)
class Leakage:
    """`share` is of the validation part's windows, one from each of its characters on."""

    window: int
    windows: int
    leaked: int
    share: float
    longest: tuple[Passage, ...]
    sampled: bool
    """Whether a part was too long to be looked at as a whole."""


def leakage(text: Text) -> Leakage:
    """Look up the validation part's windows in the training part."""
    stop = min(text.length, text.split_point + VALIDATION_CHARACTERS)
    asked = window_hashes(text.read(text.split_point, stop), WINDOW)
    starts = _training_starts(text.split_point)
    if not len(asked) or text.split_point < WINDOW:
        return Leakage(WINDOW, len(asked), 0, 0.0, (), False)
    order = np.argsort(asked)
    found = np.full(len(asked), -1, dtype=np.int64)  # in the order of `ordered`
    ordered = asked[order]
    del asked
    seen = filter_of(ordered)
    for i, start in enumerate(starts):
        text.progress("comparing the two parts of", i * PIECE, len(starts) * PIECE)
        _look_up(text, start, ordered, seen, found)
    text.progress("comparing the two parts of", len(starts) * PIECE, len(starts) * PIECE)
    del seen
    # Equal hashes stand together, and only the first of them was marked.
    same = np.append(False, ordered[1:] == ordered[:-1])
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(ordered))))
    training = np.empty_like(found)
    training[order] = found[first]
    leaked = _verified(text, training)
    n = int(np.count_nonzero(leaked))
    longest = _longest(text, leaked, training)
    sampled = stop < text.length or len(starts) * PIECE < text.split_point
    return Leakage(WINDOW, len(leaked), n, n / len(leaked), longest, sampled)


def _training_starts(split_point: int) -> list[int]:
    every = range(0, split_point, PIECE)
    wanted = TRAINING_CHARACTERS // PIECE + 1
    if len(every) <= wanted:
        return list(every)
    return [every[i * len(every) // wanted] for i in range(wanted)]


def _look_up(text: Text, start: int, ordered: U64, seen: Bools, found: I64) -> None:
    """Mark in `found` where the windows of one piece of the training part stand."""
    hashes = window_hashes(text.read(start, min(start + PIECE + WINDOW - 1, text.split_point)), WINDOW)
    candidates = np.flatnonzero(seen[slots(hashes, seen)])
    hashes = hashes[candidates]
    by_hash = np.argsort(hashes)  # searching in order is several times faster
    hashes, candidates = hashes[by_hash], candidates[by_hash]
    places = np.searchsorted(ordered, hashes)
    hit = ordered[np.minimum(places, len(ordered) - 1)] == hashes
    places, candidates = places[hit], candidates[hit] + start
    new = found[places] < 0
    found[places[new]] = candidates[new]


def _verified(text: Text, training: I64) -> Bools:
    """Which windows equal the ones at `training`, character by character."""
    file = np.memmap(text.corpus.train.path, dtype=text.corpus.train.dtype, mode="r")
    leaked = training >= 0
    windows, offsets = np.flatnonzero(leaked), np.arange(WINDOW)
    for i in range(0, len(windows), _VERIFIED):
        part = windows[i : i + _VERIFIED]
        same = file[(text.split_point + part)[:, None] + offsets] == file[training[part][:, None] + offsets]
        leaked[part] = same.all(axis=1)
    return leaked


def _longest(text: Text, leaked: Bools, training: I64) -> tuple[Passage, ...]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], leaked.view(np.int8), [0]))))
    begins, ends = edges[0::2], edges[1::2]
    passages = []
    for i in np.argsort(begins - ends, kind="stable")[:_WORST]:
        begin, length = int(begins[i]), int(ends[i] - begins[i]) + WINDOW - 1
        quote = text.quote(text.split_point + begin, min(length, _QUOTED))
        blank = len(quote) - len(quote.lstrip())  # the end of the line before is no place to point to
        here, there = text.places([text.split_point + begin + blank, int(training[begin]) + blank])
        passages.append(Passage(length, here, there, quote.strip() + ("…" if length > _QUOTED else "")))
    return tuple(passages)
