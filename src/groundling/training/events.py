"""What happened, typed. `fit` emits events; the console, the files and whoever else subscribes show or keep them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from groundling.data.progress import Progress


@dataclass(frozen=True)
class Event:
    def to_dict(self) -> dict[str, Any]:
        """For JSON: the event's name, in lower case, and its fields."""
        return {"event": type(self).__name__.lower()} | dataclasses.asdict(self)


@dataclass(frozen=True)
class Notice(Event):
    """A sentence that the user should see."""

    sentence: str


@dataclass(frozen=True)
class Preparing(Event):
    """The text is being read; `done` of `total` bytes."""

    doing: str
    done: int
    total: int


@dataclass(frozen=True)
class Planned(Event):
    """What `--minutes` will be used for. `loss` is the validation loss expected at the end, most likely from `low`
    to `high`, or None where a preset was named, of which nothing is known; `ends` is when, as local time in ISO 8601;
    `memory` is in bytes."""

    minutes: float
    parameters: int
    model: dict[str, Any]
    batch_size: int
    steps: int
    seconds_per_step: float
    epochs: float
    memory: int
    loss: float | None
    low: float | None
    high: float | None
    ends: str
    generations: int = 1


@dataclass(frozen=True)
class Started(Event):
    """Training begins, or goes on, at `step`. With `minutes`, the clock ends it, and `steps` is a guess."""

    run: str
    step: int
    steps: int
    minutes: float
    corpus: dict[str, Any]
    parameters: list[tuple[str, int]]
    machine: dict[str, Any]
    epochs: float


@dataclass(frozen=True)
class Step(Event):
    """An optimizer step was done: `step` of them so far. `loss` is the training batch's, in nats a token.

    `elapsed` and `seconds_left` are seconds, over all sessions of the run; evaluations are counted in both.
    `grad_norm` is None where float16 could not hold the gradients, and the step was left out.
    """

    step: int
    loss: float
    learning_rate: float
    tokens: int
    tokens_per_second: float
    elapsed: float
    seconds_left: float
    grad_norm: float | None


@dataclass(frozen=True)
class Evaluation(Event):
    """The validation part was scored after `step` steps. `training_loss` is the mean since the last evaluation."""

    step: int
    validation_loss: float
    bits_per_byte: float
    training_loss: float | None
    best: bool
    elapsed: float


@dataclass(frozen=True)
class Sample(Event):
    """What the model writes after `step` steps, always from the same prompt and seed.

    `copied_share` is the share of its characters in spans of 30 or more that stand verbatim in the training text,
    `longest_copy` the length in characters of the longest span that does, and `copied_spans` are the former ones, as
    places in `text`: start and stop. None where it was not looked for.
    """

    step: int
    prompt: str
    text: str
    copied_share: float | None = None
    longest_copy: int | None = None
    copied_spans: list[tuple[int, int]] | None = None


@dataclass(frozen=True)
class Generation(Event):
    """After `step` steps, a new model begins: the `generation`-th. The one before teaches it from now on."""

    step: int
    generation: int


@dataclass(frozen=True)
class Checked(Event):
    """What counting alone reaches, in nats a token. `milestones` holds the n-gram model's validation loss in
    place n, from the uniform model on; `one_gram` is the 1-gram model's on the training part. `leakage` is the share of
    the validation part that the training part has too, None if it was not looked at."""

    milestones: list[float]
    one_gram: float
    leakage: float | None


@dataclass(frozen=True)
class Skipped(Event):
    """The loss or the gradient of `step` was at fault, as `cause` says: weights and optimizer are as before it.

    `rollbacks` is how many there were before.
    """

    step: int
    cause: str
    rollbacks: int


@dataclass(frozen=True)
class RolledBack(Event):
    """Training went back from `step`, for what `cause` says, to the checkpoint of step `to` (0: the start).

    The steps between are made again, with `rate_share` of the learning rates that were set. `evaluated_step` is the
    last one before `to` that was evaluated, `rollbacks` how many there were before.
    """

    step: int
    to: int
    evaluated_step: int
    cause: str
    rate_share: float
    rollbacks: int


@dataclass(frozen=True)
class OutOfMemory(Event):
    """Memory ran out; training goes on after `step` steps with `batch_size` windows in a pass, and `accumulate` passes
    a step, which reads the same windows as before. `evaluation_batch` is how many an evaluation reads at once.

    If the optimizer was at work, training went back to `step`; `evaluated_step` is the last one that was evaluated by
    then, and `rollbacks` how many there were.
    """

    step: int
    evaluated_step: int
    doing: str
    batch_size: int
    accumulate: int
    evaluation_batch: int
    rollbacks: int


@dataclass(frozen=True)
class Diverged(Event):
    """Training cannot come beyond `step`, for what `cause` says. Nothing of that step is saved."""

    step: int
    cause: str = ""


@dataclass(frozen=True)
class Saved(Event):
    step: int
    checkpoint: str


@dataclass(frozen=True)
class Paused(Event):
    """Training stopped at the user's request, and everything is saved."""

    step: int
    run: str


@dataclass(frozen=True)
class Finished(Event):
    """All steps are done."""

    run: str
    step: int
    elapsed: float
    best_step: int
    best_validation_loss: float
    verdict: str
    peak_memory: int  # bytes
    forecast: str | None = None  # how good the plan was, where there was one
    sees_future: bool = False  # the model was found to: see evaluation/causality.py
    report: str | None = None  # the page about the run


Subscriber = Callable[[Event], None]


def reporters(tell: Subscriber) -> tuple[Callable[[str], None], Progress]:
    """What tells a subscriber a sentence, and how far the reading of a text is: see data/tokenizers/train.py."""
    return lambda sentence: tell(Notice(sentence)), lambda doing, done, total: tell(Preparing(doing, done, total))
