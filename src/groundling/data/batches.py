"""(seed, step, micro-step) -> batch: a pure function, so there is nothing to lose at a crash.

An epoch is a permutation of the text's non-overlapping windows, shifted as a whole by a random phase:
every part of the text is seen once an epoch, in a new order and cut at new places each time. (Windows
drawn with replacement, as nanoGPT does, leave a third of the text unseen in an epoch's worth of steps.)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from groundling.data.corpus import Tokens
from groundling.data.hashing import U64, mix
from groundling.machine import Machine

_PIECE = 1 << 24  # tokens that are carried to a GPU at a time


@dataclass(frozen=True)
class Batches:
    """Training batches of `batch_size` windows of `block_size` tokens; `accumulate` of them make a step.

    Raises ValueError if the text is shorter than one window and the token to predict after it.
    """

    tokens: Tokens
    block_size: int
    batch_size: int
    accumulate: int
    seed: int
    resident: torch.Tensor | None = None  # the tokens on a GPU, where that has room: nothing is copied there any more

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.block_size:
            raise ValueError(
                f"The training part of the text has {len(self.tokens)} token(s), and a context of "
                f"--block-size {self.block_size} needs at least {self.block_size + 1}: "
                "use a longer text or a smaller --block-size."
            )

    @property
    def windows_per_epoch(self) -> int:
        # One window fewer than fits leaves room for the phase, so that all epochs have the same length.
        return max(1, len(self.tokens) // self.block_size - 1)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.accumulate * self.block_size

    def epochs(self, step: int) -> float:
        """How many times the text has been seen after `step` steps."""
        return step * self.batch_size * self.accumulate / self.windows_per_epoch

    def starts(self, step: int, micro_step: int = 0) -> npt.NDArray[np.int64]:
        """Where the windows of a batch begin in the training part, shape (batch_size,)."""
        first = (step * self.accumulate + micro_step) * self.batch_size
        epochs, places = np.divmod(np.arange(first, first + self.batch_size), self.windows_per_epoch)
        starts = np.empty(self.batch_size, dtype=np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            keys = np.random.SeedSequence([self.seed, epoch]).generate_state(5, np.uint64).astype(np.uint64)
            slack = len(self.tokens) - self.windows_per_epoch * self.block_size
            phase = int(keys[4] % np.uint64(slack))  # the largest one ends at the text's last token
            here = epochs == epoch
            starts[here] = phase + self.block_size * permute(places[here], self.windows_per_epoch, keys[:4])
        return starts

    def __call__(self, step: int, micro_step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and the tokens that follow them, both (B, T) int64, on the CPU or where the tokens are resident."""
        starts = self.starts(step, micro_step)
        if self.resident is None:
            windows = torch.from_numpy(self.tokens.windows(starts, self.block_size + 1))
        else:
            offsets = torch.arange(self.block_size + 1, device=self.resident.device)
            windows = self.resident[torch.from_numpy(starts).to(self.resident.device)[:, None] + offsets].long()
        return windows[:, :-1], windows[:, 1:]

    def on(self, device: torch.device) -> Batches:
        """The same batches, made on `device`, where all tokens then lie as int32: 4 bytes each."""
        tokens = torch.empty(len(self.tokens), dtype=torch.int32, device=device)
        for start in range(0, len(self.tokens), _PIECE):
            piece = self.tokens.read(start, min(start + _PIECE, len(self.tokens)))
            tokens[start : start + len(piece)] = torch.from_numpy(piece.astype(np.int32))
        return dataclasses.replace(self, resident=tokens)


def near(batches: Batches, machine: Machine) -> Batches:
    """The same, made on the machine's GPU if it has one with room for the whole text; else as they are."""
    if machine.device.type != "cuda":
        return batches
    room = torch.cuda.get_device_properties(machine.device).total_memory // 8
    return batches.on(machine.device) if 4 * len(batches.tokens) <= room else batches


def permute(places: npt.NDArray[np.int64], n: int, keys: U64) -> npt.NDArray[np.int64]:
    """Images of `places` under the pseudo-random permutation of range(n) that `keys` choose.

    A balanced Feistel network over the least even number of bits that holds n, walked until the value
    falls below n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It takes constant
    memory and any place can be asked for on its own; shuffling an index takes 8 bytes a window.
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
