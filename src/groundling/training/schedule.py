"""Learning-rate schedule: a pure function of progress, from 0 at the start to 1 at the end."""

from __future__ import annotations

import math

from groundling.config import TrainingSettings


def rate_factor(progress: float, settings: TrainingSettings) -> float:
    """The learning rate as a share of its peak: linear warm-up, then decay to `final_lr_fraction`.

    `progress` is that of the current stage. Each stage has the whole schedule, and its warm-up takes the same share of
    it as `warmup_steps` of `steps`.
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
