"""Our answers to the exercises of chapter 5."""

from __future__ import annotations

import math


def smoothed(losses: list[float], width: int) -> list[float]:
    windows = [losses[max(0, end - width) : end] for end in range(1, len(losses) + 1)]
    return [sum(window) / len(window) for window in windows]


def best_step(steps: list[int], validation: list[float]) -> int:
    finite = [(loss, step) for step, loss in zip(steps, validation, strict=False) if math.isfinite(loss)]
    return min(finite)[1]


def name_fault(
    training: list[float], validation: list[float], epochs: float, one_gram: float, best_ngram: float
) -> str:
    if not all(map(math.isfinite, training + validation)):
        return "diverged"
    if epochs <= 1 and training[-1] < best_ngram / 3:
        return "too good to be true"
    if epochs <= 1 and validation[-1] - training[-1] > 0.35:
        return "unlike validation"
    if training[-1] > one_gram - 0.05:
        return "not learning"
    if validation[-1] > min(validation) + 0.01 and training[-1] < min(validation):
        return "overfitting"
    return "healthy"
