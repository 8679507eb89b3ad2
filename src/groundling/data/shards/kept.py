"""Which documents of a shard are read, if copies of earlier ones are left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Kept:
    """A flag for each document, one byte each, from `start` to `stop` in a file of those of the whole text."""

    path: Path
    start: int
    stop: int

    def flags(self) -> npt.NDArray[np.bool_]:
        return np.fromfile(self.path, np.bool_, self.stop - self.start, offset=self.start)
