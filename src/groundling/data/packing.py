"""Put several short examples into one row, so that less of a batch is padding."""

from __future__ import annotations

import bisect

import numpy as np
import numpy.typing as npt
import torch

from groundling.data.batches import Batch
from groundling.data.examples import Examples


class PackedExamples:
    """Rows of one or more examples. The examples of a row do not see each other: see model/packing.py."""

    def __init__(self, examples: Examples) -> None:
        bins = best_fit(examples.lengths, examples.block_size)
        parts = [list(zip(*(examples[i] for i in row), strict=True)) for row in bins]
        joined = [(np.concatenate(tokens), np.concatenate(learned)) for tokens, learned in parts]
        self.rows = Examples.of(joined, examples.block_size)
        self._ends = [np.cumsum(examples.lengths[rows]) for rows in bins]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return self.rows.lengths

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """As `Examples.batch`, with the extra `documents`: the number of each token's example in its row."""
        batch = self.rows.batch(rows)
        T = batch.tokens.size(1)
        numbers = [np.searchsorted(self._ends[row], np.arange(T), side="right") for row in rows.tolist()]
        return Batch(batch.tokens, batch.targets, batch.weights, {"documents": torch.from_numpy(np.stack(numbers))})


def best_fit(lengths: npt.NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Pack items into bins: longest first, each into the fullest bin that has room for it. Items longer than
    `capacity` come alone."""
    bins, room = list[list[int]](), list[tuple[int, int]]()  # room: (left in the bin, bin), sorted
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        place = bisect.bisect_left(room, (length, -1))
        left, number = room.pop(place) if place < len(room) else (capacity, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(item)
        bisect.insort(room, (left - length, number))
    return bins
