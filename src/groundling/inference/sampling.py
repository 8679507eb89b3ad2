"""Logits -> the next token."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    `temperature` 0 is greedy: always the likeliest. `top_k` 0 switches it off; one beyond the vocabulary
    keeps everything. Without a `seed`, a random one is drawn and can be read from the object, so that any
    sample can be repeated. Raises ValueError naming the flag.
    """

    temperature: float = 0.7
    top_k: int = 50
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:  # NaN fails too
            raise ValueError(f"--temperature must be 0 (greedy) or above, and it is {self.temperature}.")
        if self.top_k < 0:
            raise ValueError(f"--top-k must be 1 or more, or 0 for no limit, and it is {self.top_k}.")
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbelow(2**31))
        elif not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must lie in [0, 2^63), and it is {self.seed}.")

    def generator(self) -> torch.Generator:
        """Randomness on the CPU, whatever the device: the draw depends on the logits and the seed alone."""
        assert self.seed is not None
        return torch.Generator().manual_seed(self.seed)


def pick(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """One token a row: logits (B, V) -> ids (B,), on the CPU."""
    logits = logits.float().cpu()
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.size(-1):
        kth = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
