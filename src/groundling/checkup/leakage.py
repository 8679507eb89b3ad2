"""Leakage: how much of the validation part also occurs, character for character, in the training part.

A model can memorize the text that it is validated on, and then the validation loss looks better than the model is.
Every window of 50 characters of the validation part is looked up in the training part: first by 64-bit hash, then
character by character, so a reported match is a real one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from groundling.analysis.leakage import WINDOW, filter_of, slots
from groundling.checkup.text import I64, PIECE, Bools, Place, Text
from groundling.data.hashing import U64, window_hashes

VALIDATION_CHARACTERS = 10_000_000  # of a longer validation part, only this many at the start are looked up
TRAINING_CHARACTERS = 100_000_000  # a longer training part is sampled evenly, and the result is a lower bound
_WORST, _QUOTED = 5, 120
_VERIFIED = 1 << 16  # windows compared at once


@dataclass(frozen=True)
class Passage:
    """A passage of the validation part, each window of which occurs in the training part."""

    characters: int
    validation: Place
    training: Place  # where its beginning occurs in the training part
    quote: str


@dataclass(frozen=True)
class Leakage:
    """`share` is of the validation part's windows, one for each starting position."""

    window: int
    windows: int
    leaked: int
    share: float
    longest: tuple[Passage, ...]
    sampled: bool  # whether a part was too long to be read completely


def leakage(text: Text) -> Leakage:
    """Look up the windows of the validation part in the training part."""
    stop = min(text.length, text.split_point + VALIDATION_CHARACTERS)
    hashes = window_hashes(text.read(text.split_point, stop), WINDOW)
    if not len(hashes) or text.split_point < WINDOW:
        return Leakage(WINDOW, len(hashes), 0, 0.0, (), False)
    order = np.argsort(hashes)
    found = np.full(len(hashes), -1, dtype=np.int64)  # in the order of `ordered`
    ordered = hashes[order]
    del hashes
    seen = filter_of(ordered)
    starts = _training_starts(text.split_point)
    for i, start in enumerate(starts):
        text.progress("comparing the two parts of", i * PIECE, len(starts) * PIECE)
        _look_up(text, start, ordered, seen, found)
    text.progress("comparing the two parts of", len(starts) * PIECE, len(starts) * PIECE)
    del seen
    # Only the first of several equal hashes was marked.
    same = np.append(False, ordered[1:] == ordered[:-1])
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(ordered))))
    training = np.empty_like(found)
    training[order] = found[first]
    leaked = _verified(text, training)
    n = int(np.count_nonzero(leaked))
    sampled = stop < text.length or len(starts) * PIECE < text.split_point
    return Leakage(WINDOW, len(leaked), n, n / len(leaked), _longest(text, leaked, training), sampled)


def _training_starts(split_point: int) -> list[int]:
    every = range(0, split_point, PIECE)
    wanted = min(TRAINING_CHARACTERS // PIECE + 1, len(every))
    return [every[i * len(every) // wanted] for i in range(wanted)]


def _look_up(text: Text, start: int, ordered: U64, seen: Bools, found: I64) -> None:
    """Mark in `found` where the windows of one piece of the training part are."""
    hashes = window_hashes(text.read(start, min(start + PIECE + WINDOW - 1, text.split_point)), WINDOW)
    candidates = np.flatnonzero(seen[slots(hashes, seen)])
    hashes = hashes[candidates]
    by_hash = np.argsort(hashes, kind="stable")  # searching in order is several times faster
    hashes, candidates = hashes[by_hash], candidates[by_hash]
    places = np.searchsorted(ordered, hashes)
    hit = ordered[np.minimum(places, len(ordered) - 1)] == hashes
    places, candidates = places[hit], candidates[hit] + start
    new = found[places] < 0
    found[places[new]] = candidates[new]


def _verified(text: Text, training: I64) -> Bools:
    """Which windows equal the ones at `training`, character by character."""
    leaked = training >= 0
    windows = np.flatnonzero(leaked)
    for i in range(0, len(windows), _VERIFIED):
        part = windows[i : i + _VERIFIED]
        same = text.windows(text.split_point + part, WINDOW) == text.windows(training[part], WINDOW)
        leaked[part] = same.all(axis=1)
    return leaked


def _longest(text: Text, leaked: Bools, training: I64) -> tuple[Passage, ...]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], leaked.view(np.int8), [0]))))
    begins, ends = edges[0::2], edges[1::2]
    passages = []
    for i in np.argsort(begins - ends, kind="stable")[:_WORST]:
        begin, length = int(begins[i]), int(ends[i] - begins[i]) + WINDOW - 1
        quote = text.quote(text.split_point + begin, min(length, _QUOTED))
        blank = len(quote) - len(quote.lstrip())  # do not point to the end of the line before
        here, there = text.places([text.split_point + begin + blank, int(training[begin]) + blank])
        passages.append(Passage(length, here, there, quote.strip() + ("…" if length > _QUOTED else "")))
    return tuple(passages)
