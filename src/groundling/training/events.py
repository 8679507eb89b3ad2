"""Typed events of training. The trainer emits them; the console, the log files, trackers and the studio subscribe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from groundling.data.progress import Progress

VALIDATION_LOSS = "validation loss"
LOSS_ON = "loss on "
"""Before the name of a text: the figure that is the loss on its validation part, if a run mixes several."""
_USUAL = {"figures": {}, "metric": VALIDATION_LOSS, "task": "pretraining"}  # left out of JSON


@dataclass(frozen=True)
class Event:
    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the event's name in lower case and its fields, but for those in which it is as in pretraining."""
        values = {"event": type(self).__name__.lower()} | dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in _USUAL or value != _USUAL[name]}


@dataclass(frozen=True)
class Notice(Event):
    """A sentence that the user should see."""

    sentence: str


@dataclass(frozen=True)
class Preparing(Event):
    """The text is being read: `done` of `total` bytes so far."""

    doing: str
    done: int
    total: int


@dataclass(frozen=True)
class Planned(Event):
    """What `--minutes` will be used for.

    `loss` is the expected validation loss at the end, most likely from `low` to `high`. They are None with a named
    preset, which has no forecast. `ends` is the local time of the end in ISO 8601, `memory` is in bytes.
    """

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
    """Training starts or resumes at `step`. With `minutes`, training ends by the clock, and `steps` is an estimate."""

    run: str
    step: int
    steps: int
    minutes: float
    corpus: dict[str, Any]
    parameters: list[tuple[str, int]]
    machine: dict[str, Any]
    epochs: float
    task: str = "pretraining"


@dataclass(frozen=True)
class Step(Event):
    """An optimizer step, the `step`-th. `loss` is that of the training batch, in nats per token.

    `elapsed` and `seconds_left` are in seconds and cover all sessions of the run, including evaluations. `grad_norm` is
    None where float16 could not hold the gradients and the step was skipped. `figures` are what the task logs beside
    the loss."""

    step: int
    loss: float
    learning_rate: float
    tokens: int
    tokens_per_second: float
    elapsed: float
    seconds_left: float
    grad_norm: float | None
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation(Event):
    """The model was evaluated after `step` steps. `training_loss` is the mean since the last evaluation.

    `validation_loss` is the value by which checkpoints are compared, a loss in nats per token unless `metric` says
    otherwise. `bits_per_byte` is None where the task has none. `figures` are what the task reports beside them.
    """

    step: int
    validation_loss: float
    bits_per_byte: float | None
    training_loss: float | None
    best: bool
    elapsed: float
    figures: dict[str, float] = field(default_factory=dict)
    metric: str = VALIDATION_LOSS


@dataclass(frozen=True)
class Sample(Event):
    """What the model generated after `step` steps, always from the same prompt and seed.

    `copied_share` is the share of its characters in spans of 30 or more that occur verbatim in the training text,
    `longest_copy` the length in characters of the longest such span, and `copied_spans` their start and stop in
    `text`. None if it was not compared with the training text.
    """

    step: int
    prompt: str
    text: str
    copied_share: float | None = None
    longest_copy: int | None = None
    copied_spans: list[tuple[int, int]] | None = None


@dataclass(frozen=True)
class ReplyGroup:
    """Replies to the same prompt, and the reward of each."""

    prompt: str
    replies: list[str]
    rewards: list[float]


@dataclass(frozen=True)
class Replies(Event):
    """Groups of replies that the model wrote after `step` steps."""

    step: int
    groups: list[ReplyGroup]


@dataclass(frozen=True)
class Generation(Event):
    """After `step` steps, the `generation`-th model starts. The previous one becomes its teacher."""

    step: int
    generation: int


@dataclass(frozen=True)
class Checked(Event):
    """The n-gram baselines of the text. `milestones[n]` is the validation loss of the n-gram model in nats per token,
    from the uniform model (n = 0) on. `one_gram` is the 1-gram model's loss on the training part. `leakage` is the
    share of the validation part that also occurs in the training part, or None if that was not checked."""

    milestones: list[float]
    one_gram: float
    leakage: float | None


@dataclass(frozen=True)
class Skipped(Event):
    """Step `step` was skipped because of `cause`, a bad loss or gradient. Weights and optimizer did not change.

    `rollbacks` is the number of rollbacks before.
    """

    step: int
    cause: str
    rollbacks: int


@dataclass(frozen=True)
class RolledBack(Event):
    """Because of `cause`, training went back from `step` to the checkpoint of step `to` (0: the start).

    The steps between are repeated with `rate_share` of the original learning rate. `evaluated_step` is the last one
    up to `to` that was evaluated, `rollbacks` the number of rollbacks before.
    """

    step: int
    to: int
    evaluated_step: int
    cause: str
    rate_share: float
    rollbacks: int


@dataclass(frozen=True)
class OutOfMemory(Event):
    """Memory ran out. Training continues after `step` steps with `accumulate` micro-batches of `batch_size` windows,
    which together are the same windows as before. Evaluations read `evaluation_batch` windows at once.

    If it happened in the optimizer, training `went_back` to `step`. `evaluated_step` is the last one that was evaluated
    by then, and `rollbacks` the number of rollbacks.
    """

    step: int
    evaluated_step: int
    doing: str
    batch_size: int
    accumulate: int
    evaluation_batch: int
    rollbacks: int
    went_back: bool = False


@dataclass(frozen=True)
class Diverged(Event):
    """Training failed at `step` because of `cause`. That step is not saved."""

    step: int
    cause: str = ""


@dataclass(frozen=True)
class Saved(Event):
    step: int
    checkpoint: str


@dataclass(frozen=True)
class Paused(Event):
    """Training was stopped by the user. Everything is saved."""

    step: int
    run: str


@dataclass(frozen=True)
class Finished(Event):
    """Training is finished. `best_validation_loss` is the best value of `metric`; see `Evaluation`."""

    run: str
    step: int
    elapsed: float
    best_step: int
    best_validation_loss: float
    verdict: str
    peak_memory: int  # bytes
    forecast: str | None = None  # how good the plan was, if there was one
    sees_future: bool = False  # see evaluation/causality.py
    report: str | None = None  # the HTML report of the run
    prompt: str = ""  # a word of the text, for an example
    metric: str = VALIDATION_LOSS


Subscriber = Callable[[Event], None]


def reporters(tell: Subscriber) -> tuple[Callable[[str], None], Progress]:
    """Two functions that pass a notice, or the progress of reading a text, to a subscriber."""
    return lambda sentence: tell(Notice(sentence)), lambda doing, done, total: tell(Preparing(doing, done, total))
