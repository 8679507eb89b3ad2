"""The learning rate as a pure function of progress, from 0 at the start to 1 at the end."""

from __future__ import annotations

import math

from groundling.config import TrainingSettings


def learning_rate(progress: float, settings: TrainingSettings) -> float:
    """Linear warm-up to the peak, then cosine, linear or no decay to `final_lr_fraction` of it."""
    warmup = settings.warmup_steps / settings.steps
    if progress < warmup:
        return settings.learning_rate * progress / warmup
    after = (progress - warmup) / (1 - warmup)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * after)),
        "linear": 1 - after,
        "constant": 1.0,
    }[settings.schedule]
    floor = settings.final_lr_fraction
    return settings.learning_rate * (floor + (1 - floor) * left)
