"""A longer context for a trained model (`train --init-from RUN --block-size N`).

With RoPE, the weights stay what they are, and `--rope-scaling` makes the new angles like those of training. Learned
positions are rows of a table, which is stretched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from groundling.config import ModelSettings, limits

CHANGEABLE = ("block_size", "rope_scaling")
"""The settings of a model that another run may change."""


def check_context(model: ModelSettings, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a model with other `settings` of its context would not work."""
    block_size, scaling = settings.get("block_size", model.block_size), settings.get("rope_scaling")
    limits.BLOCK_SIZE.check("--block-size", block_size)
    if model.position == "learned":
        if scaling not in (None, "none"):
            raise ValueError(
                f"--rope-scaling {scaling!s:.80} is for models with RoPE, and this one has learned positions. Omit it: "
                "--block-size alone stretches the positions."
            )
    elif block_size > model.block_size and scaling is None:
        first = model.rope_factors[1] if model.rope_scaling.startswith("yarn") else model.block_size
        raise ValueError(
            f"--block-size {block_size} is longer than this model's context of {model.block_size}. Add --rope-scaling "
            f"yarn:{block_size / first:g}:{first:g}, so that it reads the new positions well from the start."
        )


def sentence_about(before: ModelSettings, now: ModelSettings) -> str:
    """What changes, or "" if nothing does."""
    if (before.block_size, before.rope_scaling) == (now.block_size, now.rope_scaling):
        return ""
    sizes = f"The context is {now.block_size:,} tokens instead of {before.block_size:,}"
    if now.position == "rope":
        return f"{sizes}, with --rope-scaling {now.rope_scaling}."
    return f"{sizes}: learned positions are {'interpolated' if now.block_size > before.block_size else 'cut off'}."


def resized_positions(table: torch.Tensor, block_size: int) -> torch.Tensor:
    """Learned positions (N, C) for another context, (block_size, C): interpolated if it is longer, so that the first
    and the last stay what they were, and cut off if it is shorter."""
    if block_size <= len(table):
        return table[:block_size]
    return F.interpolate(table.T[None], size=block_size, mode="linear", align_corners=True)[0].T
