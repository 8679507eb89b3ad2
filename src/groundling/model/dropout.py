"""Dropout with masks that are cheap on a CPU.

On a CPU, PyTorch draws the masks from a Mersenne Twister on one thread, which takes longer than a small model's matrix
products. Here each element gets one byte of a counter's hash and is dropped if the byte is small. That is plain
arithmetic, which runs on all cores and which the compiler fuses.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), as signed integers.
_GAMMA, _MIX_1, _MIX_2 = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@torch.library.custom_op("groundling::draw_seed", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def draw_seed() -> torch.Tensor:
    """A random int64 from PyTorch's own generator, so that `torch.manual_seed` decides it.

    It is a custom operator, so that the compiler calls it instead of replacing it with its own generator.
    """
    return torch.randint(2**62, ())


@draw_seed.register_fake
def _() -> torch.Tensor:
    return torch.empty((), dtype=torch.int64)


def random_bytes(shape: torch.Size, seed: torch.Tensor) -> torch.Tensor:
    """uint8 in `shape`, uniform: SplitMix64 started at `seed`, eight bytes a number."""
    # In whole vectors of the CPU: past the last one, the code that PyTorch 2.13 compiles writes beyond its memory.
    x = torch.arange(-(-shape.numel() // 512) * 64) * _GAMMA + seed
    # PyTorch shifts the sign in from the left: masked, it is a shift of unsigned numbers.
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _MIX_1
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _MIX_2
    x = x ^ (x >> 31 & (1 << 33) - 1)
    return x.view(torch.uint8)[: shape.numel()].view(shape)


class Dropout(nn.Module):
    """Sets a share p of the elements to zero in training and scales up the others, so that the mean stays.

    On a CPU, p is rounded to a multiple of 1/256 other than 0 and 1. On GPUs, which draw in parallel, this is PyTorch's
    dropout.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.threshold = min(max(round(p * 256), 1), 255)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        kept = random_bytes(x.shape, draw_seed()) >= self.threshold
        return torch.where(kept, x * (256 / (256 - self.threshold)), 0.0)
