"""(seed, step) -> batch: a pure function, so there is no data position to save or to lose in a crash.

An epoch is a permutation of the text's non-overlapping windows, all shifted by a random phase. So each epoch reads
every part of the text once, in a new order and cut at new places. (nanoGPT draws windows with replacement, which leaves
a third of the text unread in one epoch's number of steps.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from groundling.data.hashing import U64, mix
from groundling.data.tokens import Tokens
from groundling.machine import Machine

_PIECE = 1 << 24  # tokens copied to a GPU at a time
_WIDTHS = 32  # micro-batches are shortened to multiples of this, so that they have few shapes


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on `device`. From pinned memory, a GPU takes it when its queue is there; for other memory Python waits
    until the queue is empty."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.contiguous().pin_memory()
    return x.to(device, non_blocking=True)


@dataclass(frozen=True)
class Batch:
    """The examples of an optimizer step, or of a micro-batch.

    `tokens` and `targets` are (B, T) int64. `weights`, (B, T), weights the loss of each target: 0 for a prompt or
    padding. Without it, each has weight 1. `extras` are more tensors of B rows. `figures` are logged with the step.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor | None = None
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def weight(self) -> float:
        """Sum of the weights. If they are on a GPU, this waits for it."""
        return float(self.targets.numel()) if self.weights is None else float(self.weights.sum())

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return self.weights is None or self.weight != 0

    def split(self, n: int) -> list[Batch]:
        """`n` micro-batches of as many rows each, or one more, but none without rows. Those with weights end where
        nothing more is learned."""
        n = min(n, len(self))
        ends = [i * len(self) // n for i in range(n + 1)]
        parts = [self._map(lambda x, here=slice(*pair): x[here]) for pair in pairwise(ends)]
        return [part._shortened() for part in parts] if n > 1 and self.weights is not None else parts

    def _shortened(self) -> Batch:
        """Without the last columns, in which every weight is 0. The others do not depend on them."""
        assert self.weights is not None
        T = self.tokens.size(1)
        learned = self.weights.ne(0).any(0).nonzero()
        width = min(T, -(-(int(learned[-1]) + 1 if len(learned) else 1) // _WIDTHS) * _WIDTHS)
        return self._map(lambda x: x[:, :width] if x.dim() > 1 and x.size(1) == T else x)

    def to(self, device: torch.device) -> Batch:
        return self._map(lambda x: sent(x, device))

    def _map(self, change: Any) -> Batch:
        weights = None if self.weights is None else change(self.weights)
        extras = {name: change(value) for name, value in self.extras.items()}
        return Batch(change(self.tokens), change(self.targets), weights, extras)


@dataclass(frozen=True)
class WindowSampler:
    """Batches of `batch_size` windows of `block_size` tokens, one for each optimizer step.

    Raises ValueError if the text is shorter than one window and the token after it.
    """

    tokens: Tokens
    block_size: int
    batch_size: int
    seed: int
    on_device: torch.Tensor | None = None
    """All tokens on a GPU, if they fit. Then training copies no batches there."""
    stream: tuple[int, ...] = ()
    """Numbers that give another order with the same seed, for one of several texts."""

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.block_size:
            raise ValueError(f"{len(self.tokens)} token(s) are fewer than a window of {self.block_size} and one more.")

    @property
    def windows_per_epoch(self) -> int:
        # One window fewer than fits leaves room for the phase, so all epochs have the same length.
        return max(1, len(self.tokens) // self.block_size - 1)

    def epochs(self, step: int) -> float:
        """Epochs after `step` steps."""
        return step * self.batch_size / self.windows_per_epoch

    def offsets(self, step: int) -> npt.NDArray[np.int64]:
        """Start of each window of a step in the training part, shape (batch_size,)."""
        first = step * self.batch_size
        return self.starts(np.arange(first, first + self.batch_size))

    def starts(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Start of each of these windows, which are counted from the run's first. The numbers rise."""
        epochs, places = np.divmod(numbers, self.windows_per_epoch)
        offsets = np.empty(len(numbers), dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            sequence = np.random.SeedSequence([self.seed, epoch], spawn_key=self.stream)
            keys = sequence.generate_state(5, np.uint64).astype(np.uint64)
            slack = len(self.tokens) - self.windows_per_epoch * self.block_size
            phase = int(keys[4] % np.uint64(slack))  # the largest ends at the text's last token
            here = epochs == epoch
            offsets[here] = phase + self.block_size * permute(places[here], self.windows_per_epoch, keys[:4])
        return offsets

    def __call__(self, step: int) -> Batch:
        """The windows of a step, with the next tokens as targets."""
        windows = self.read(self.offsets(step))
        return Batch(windows[:, :-1], windows[:, 1:])

    def read(self, starts: npt.NDArray[np.int64]) -> torch.Tensor:
        """The windows that start there, each with the token after it: (len(starts), block_size + 1)."""
        if self.on_device is None:
            return torch.from_numpy(self.tokens.windows(starts, self.block_size + 1))
        steps = torch.arange(self.block_size + 1, device=self.on_device.device)
        return self.on_device[sent(torch.from_numpy(starts), steps.device)[:, None] + steps].long()

    def to(self, device: torch.device) -> WindowSampler:
        """The same batches, made on `device`, which holds all tokens as int32, 4 bytes each."""
        tokens = torch.empty(len(self.tokens), dtype=torch.int32, device=device)
        for start in range(0, len(self.tokens), _PIECE):
            piece = self.tokens.read(start, min(start + _PIECE, len(self.tokens)))
            tokens[start : start + len(piece)] = torch.from_numpy(piece.astype(np.int32))
        return dataclasses.replace(self, on_device=tokens)

    def near(self, machine: Machine) -> WindowSampler:
        """The same batches, made on the machine's GPU if the whole text fits in an eighth of its memory."""
        return self.to(machine.device) if self.on_device is None and fits(len(self.tokens), machine) else self


def fits(n_tokens: int, machine: Machine) -> bool:
    """Whether so many tokens fit in an eighth of a GPU's memory."""
    if machine.device.type != "cuda":
        return False
    return 4 * n_tokens <= torch.cuda.get_device_properties(machine.device).total_memory // 8


def permute(places: npt.NDArray[np.int64], n: int, keys: U64) -> npt.NDArray[np.int64]:
    """Images of `places` under a pseudo-random permutation of range(n), chosen by `keys`.

    A balanced Feistel network over the smallest even number of bits that holds n, repeated until the value is below n
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It computes any place alone, in constant
    memory. A shuffled index would take 8 bytes per window.
    """
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    values = places.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (mix(right ^ key) & mask)
        values[outside] = (left << half) | right
        outside = values >= n
    return values.astype(np.int64)
