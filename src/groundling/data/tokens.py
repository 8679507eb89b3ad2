"""A range of a file of token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Tokens:
    """A range [start, stop) of a token file.

    Every access maps the file again: the pages that a mapping has touched count as this process's memory while it
    lives, and a shuffled epoch touches all of them.
    """

    path: Path
    dtype: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """Ids at `starts[i] ... starts[i] + length - 1`, shape (len(starts), length), int64."""
        assert starts.min() >= 0 and starts.max() + length <= len(self)
        file = np.memmap(self.path, dtype=self.dtype, mode="r")
        return file[(self.start + starts)[:, None] + np.arange(length)].astype(np.int64)

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Ids [start, stop) of this range, shape (stop - start,)."""
        return self.windows(np.array([start]), stop - start)[0]
