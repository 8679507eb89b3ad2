"""Dropout whose masks cost a CPU next to nothing.

PyTorch draws a CPU's masks from one Mersenne Twister on one thread; for a small model that takes longer than its
matrix products. Here each element gets one random byte from NumPy's SFC64, and is dropped if the byte is small.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


@torch.library.custom_op("groundling::random_bytes", mutates_args=(), device_types="cpu")
def random_bytes(x: torch.Tensor) -> torch.Tensor:
    """uint8 in x's shape, uniform; the seed comes from PyTorch's own generator, so `torch.manual_seed` decides it.

    An operator of its own, so that the compiler calls it and does not look inside.
    """
    seed = int(torch.randint(2**62, ()))
    noise = np.random.Generator(np.random.SFC64(seed)).bytes(x.numel())
    return torch.frombuffer(bytearray(noise), dtype=torch.uint8).view(x.shape)


@random_bytes.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=torch.uint8, device=x.device)


class Dropout(nn.Module):
    """Drops a share p of the elements in training and scales up the others, so that the mean stays.

    On a CPU p is rounded to a 256th. GPUs draw in parallel anyway: there it is PyTorch's own.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.threshold = round(p * 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        kept = random_bytes(x) >= self.threshold
        return torch.where(kept, x * (256 / (256 - self.threshold)), 0.0)

    def extra_repr(self) -> str:
        return f"p={self.p}"
