"""A range of the token ids of a corpus, in one file or in several."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Tokens:
    """A range [start, stop) of token ids.

    They are in the file `path`; or, if a corpus was prepared in several shards, in numbered files beside it, and `ends`
    holds where each of these ends, in tokens from the start of the corpus.

    Every access maps the files again: the pages that a mapping has touched count as this process's memory while it
    lives, and a shuffled epoch touches all of them.
    """

    path: Path
    dtype: str
    start: int
    stop: int
    ends: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """Ids at `starts[i] ... starts[i] + length - 1`, shape (len(starts), length), int64."""
        assert starts.min() >= 0 and starts.max() + length <= len(self)
        places = self.start + starts
        if not self.ends:
            return self._mapped()[places[:, None] + np.arange(length)].astype(np.int64)
        ids = np.empty((len(starts), length), np.int64)
        for row, place in enumerate(places.tolist()):
            ids[row] = self._stored(place, place + length)
        return ids

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Ids [start, stop) of this range, shape (stop - start,)."""
        return self.stored(start, stop).astype(np.int64)

    def stored(self, start: int, stop: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        """As `read`, in the type in which they are stored."""
        assert start >= 0 and stop <= len(self)
        return self._stored(self.start + start, self.start + max(start, stop))

    def _stored(self, start: int, stop: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        if not self.ends:
            return np.array(self._mapped()[start:stop])
        parts = [np.empty(0, self.dtype)]
        file = bisect.bisect_right(self.ends, start)
        while start < stop:
            begin, end = self.ends[file - 1] if file else 0, self.ends[file]
            parts.append(np.array(self._mapped(file)[start - begin : min(stop, end) - begin]))
            start, file = end, file + 1
        return np.concatenate(parts)

    def _mapped(self, file: int | None = None) -> npt.NDArray[np.unsignedinteger[Any]]:
        path = self.path if file is None else self.path.with_name(part_name(file))
        return np.memmap(path, dtype=self.dtype, mode="r")


def part_name(number: int) -> str:
    """The name of one of several files of tokens, counted from 0."""
    return f"tokens-{number:05}.bin"
