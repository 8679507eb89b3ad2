"""Wrong answers to the exercises of chapter 5."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wrong import wrong


@wrong("smoothed", "A later loss changes the average of earlier steps")
def centred(losses: list[float], width: int) -> list[float]:
    near = [losses[max(0, i - width // 2) : i + width // 2 + 1] for i in range(len(losses))]
    return [sum(x) / len(x) for x in near]


@wrong("smoothed", "one for each loss")
def shorter(losses: list[float], width: int) -> Any:
    return np.convolve(losses, np.ones(width) / width, "valid")


@wrong("smoothed", "it is its own mean")
def zeros_before(losses: list[float], width: int) -> list[float]:
    return [sum(losses[max(0, end - width) : end]) / width for end in range(1, len(losses) + 1)]


@wrong("smoothed", "its own included")
def one_too_many(losses: list[float], width: int) -> list[float]:
    windows = [losses[max(0, end - width - 1) : end] for end in range(1, len(losses) + 1)]
    return [sum(x) / len(x) for x in windows]


@wrong("best_step", "not its place in the list")
def place(steps: list[int], validation: list[float]) -> int:
    return validation.index(min(validation))


@wrong("best_step", "That is the last step")
def last(steps: list[int], validation: list[float]) -> int:
    return steps[-1]


@wrong("best_step", "Losses that are not finite do not count")
def fooled_by_nan(steps: list[int], validation: list[float]) -> int:
    return steps[int(np.argmin(validation))]


@wrong("best_step", "choose the first")
def latest(steps: list[int], validation: list[float]) -> int:
    finite = [(loss, -step) for step, loss in zip(steps, validation, strict=True) if math.isfinite(loss)]
    return -min(finite)[1]


def _named(training: list[float], validation: list[float], epochs: float, one_gram: float, best_ngram: float) -> str:
    if epochs <= 1 and training[-1] < best_ngram / 3:
        return "too good to be true"
    if epochs <= 1 and validation[-1] - training[-1] > 0.35:
        return "unlike validation"
    if training[-1] > one_gram - 0.05:
        return "not learning"
    return "overfitting" if validation[-1] > min(validation) + 0.01 and training[-1] < min(validation) else "healthy"


def _finite(training: list[float], validation: list[float]) -> bool:
    return all(map(math.isfinite, training + validation))


@wrong("name_fault", "ask math.isfinite")
def without_nan(**run: Any) -> str:
    return "diverged" if max(run["training"]) == math.inf else _named(**run)


@wrong("name_fault", "memorized, not impossible")
def whatever_the_epoch(**run: Any) -> str:
    if not _finite(run["training"], run["validation"]):
        return "diverged"
    return "too good to be true" if run["training"][-1] < run["best_ngram"] / 3 else _named(**run)


@wrong("name_fault", "Overfitting is a rise of the validation loss")
def gap_is_overfitting(**run: Any) -> str:
    if not _finite(run["training"], run["validation"]):
        return "diverged"
    said = _named(**run)
    return "overfitting" if said == "healthy" and run["validation"][-1] - run["training"][-1] > 0.35 else said


@wrong("name_fault", "Compare with the 1-gram model")
def compared_with_guessing(**run: Any) -> str:
    if not _finite(run["training"], run["validation"]):
        return "diverged"
    return _named(**run | {"one_gram": math.log(65)})
