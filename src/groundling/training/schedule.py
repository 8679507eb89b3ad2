"""Learning rates as a pure function of progress, from 0 at the start to 1 at the end."""

from __future__ import annotations

import math

from groundling.config import TrainingSettings


def rate_factor(progress: float, settings: TrainingSettings) -> float:
    """The share of its peak that a learning rate has: it rises linearly, then falls to `final_lr_fraction`.

    `progress` is that of a generation: each has the whole schedule.
    """
    warmup = settings.warmup_steps / settings.steps
    if progress < warmup:
        return progress / warmup
    after = (progress - warmup) / (1 - warmup)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * after)),
        "linear": 1 - after,
        "constant": 1.0,
    }[settings.schedule]
    floor = settings.final_lr_fraction
    return floor + (1 - floor) * left
