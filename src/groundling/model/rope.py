"""Rotary position embedding, also for a longer context than a model was first trained on."""

from __future__ import annotations

import math

import torch
import torch.nn as nn

from groundling.config import ModelSettings
from groundling.model.packing import Position


def rope_frequencies(config: ModelSettings) -> torch.Tensor:
    """By what angle each pair of channels turns from one position to the next, (hd / 2), in float64.

    `linear` divides all frequencies by a factor: the same angles reach that many times as far. `llama3` (the Llama 3
    Herd of Models, 2024) divides only the low ones, with fewer than `low` turns in the first context, and interpolates
    up to those with `high` turns. `yarn` does so from 1 to 32 turns, but interpolates by the channel and not by the
    number of turns (Peng et al., "YaRN: Efficient context window extension of large language models", 2023).
    """
    hd, theta = config.head_dim, config.rope_theta
    frequencies = theta ** (-torch.arange(0, hd, 2, dtype=torch.float64) / hd)
    match config.rope_factors:
        case (factor,):
            return frequencies / factor
        case (factor, context):
            few, many = (hd * math.log(context / (2 * math.pi * turns)) / (2 * math.log(theta)) for turns in (1, 32))
            first, last = max(math.floor(many), 0), min(math.ceil(few), hd - 1)
            divided = ((torch.arange(hd // 2) - first) / max(last - first, 0.001)).clamp(0, 1)
            return frequencies * (1 - divided + divided / factor)
        case (factor, low, high, context):
            turns = context * frequencies / (2 * math.pi)
            kept = ((turns - low) / (high - low)).clamp(0, 1)
            return frequencies * (kept + (1 - kept) / factor)
    return frequencies


def rope_scale(config: ModelSettings) -> float:
    """What queries and keys are multiplied by. `yarn` sharpens attention, which more tokens would flatten."""
    if not config.rope_scaling.startswith("yarn"):
        return 1.0
    return 0.1 * math.log(max(config.rope_factors[0], 1.0)) + 1.0


class RoPE(nn.Module):
    """Rotary position embedding (Su et al., "RoFormer", 2021) of queries and keys. With `qk_norm`, these are
    RMS-normalized first.

    Queries and keys are rotated by angles proportional to their positions, so that their dot product depends on the
    distance between them and not on where they are.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: ModelSettings) -> None:
        super().__init__()
        self.q_norm, self.k_norm = (
            nn.RMSNorm(config.head_dim, eps=config.qk_epsilon) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        angles = torch.outer(torch.arange(config.block_size, dtype=torch.float64), rope_frequencies(config))
        scale = rope_scale(config)
        self.register_buffer("cos", (scale * angles.cos()).float(), persistent=False)  # (block_size, hd / 2)
        self.register_buffer("sin", (scale * angles.sin()).float(), persistent=False)

    def forward(self, q: torch.Tensor, k: torch.Tensor, position: Position | None) -> tuple[torch.Tensor, torch.Tensor]:
        """q (B, nh, T, hd) and k (B, nkv, T, hd), rotated. Without a `position` they start at 0."""
        positions = slice(q.size(2)) if position is None else position.positions
        cos, sin = self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)  # (B or 1, 1, T, hd / 2)
        return self._rotate(self.q_norm, q, cos, sin), self._rotate(self.k_norm, k, cos, sin)

    @staticmethod
    def _rotate(norm: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        # In float32, as in Qwen3: bfloat16 is too coarse for norms and angles.
        # Pairs are (i, i + hd/2), as in transformers. The paper pairs neighbours; only the order differs.
        a, b = norm(x.float()).chunk(2, dim=-1)
        return torch.cat(((a * cos - b * sin).type_as(x), (b * cos + a * sin).type_as(x)), dim=-1)
