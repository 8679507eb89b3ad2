"""Commands that train a run further: sft, dpo, reward, grpo, distill."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from groundling.cli.app import Json, Out, RunReference, app, no_option
from groundling.cli.flags import with_settings
from groundling.cli.train import Track, train_and_show


def _files(name: str, help: str) -> Parameter:
    return Parameter(name=name, allow_leading_hyphen=True, validator=no_option, help=help)


_FILES = "JSON Lines, JSON, CSV or Parquet files, folders of them, or - for standard input."
Data = Annotated[str, _files("DATA", f"Conversations: {_FILES}")]
Pairs = Annotated[str, _files("PAIRS", f"Pairs of a chosen and a rejected reply: {_FILES}")]
Prompts = Annotated[
    tuple[str, ...],
    Parameter(consume_multiple=True, negative="", help=f"Prompts for the replies that --reward judges: {_FILES}"),
]
Teacher = Annotated[str, Parameter(name="TEACHER", help="The run to learn from, or a checkpoint.")]
Student = Annotated[str, Parameter(name="STUDENT", help="The run to train, or a preset for a new model of that size.")]
Read = Annotated[
    str,
    _files(
        "DATA",
        "What both read: conversations, or a text. Default: replies to the prompts of the task, or what the teacher "
        "was trained on.",
    ),
]


@app.command(sort_key=2)
@with_settings("sft", "tuning", "data", "machine")
def sft(
    run: RunReference, /, *data: Data, name: str | None = None, out: Out = None, track: Track = None,
    json: Json = False, **settings: Any,
) -> int:  # fmt: skip
    """Fine-tune a run on conversations (supervised fine-tuning). Only the assistant's replies are learned.

    Repeat the same command to resume a run that was stopped.

    Args:
        name: The new run's name. Default: the run's, and the method's.
    """
    return train_and_show("sft", json, run, data, name=name, out=out, track=track, **settings)


@app.command(sort_key=2)
@with_settings("dpo", "tuning", "data", "machine")
def dpo(
    run: RunReference, /, *pairs: Pairs, name: str | None = None, out: Out = None, track: Track = None,
    json: Json = False, **settings: Any,
) -> int:  # fmt: skip
    """Train a run to prefer chosen replies to rejected ones: DPO, IPO, KTO, ORPO, SimPO.

    Args:
        name: The new run's name. Default: the run's, and the method's.
    """
    return train_and_show("dpo", json, run, pairs, name=name, out=out, track=track, **settings)


@app.command(sort_key=2)
@with_settings("reward", "tuning", "data", "machine")
def reward(
    run: RunReference, /, *pairs: Pairs, name: str | None = None, out: Out = None, track: Track = None,
    json: Json = False, **settings: Any,
) -> int:  # fmt: skip
    """Train a reward model, which judges replies, on pairs of a chosen and a rejected one.

    Args:
        name: The new run's name. Default: the run's, and the method's.
    """
    return train_and_show("reward", json, run, pairs, name=name, out=out, track=track, **settings)


@app.command(sort_key=2)
@with_settings("grpo", "tuning", "data", "machine")
def grpo(
    run: RunReference, /, *, prompts: Prompts = (), name: str | None = None, out: Out = None, track: Track = None,
    json: Json = False, **settings: Any,
) -> int:  # fmt: skip
    """Train a run by rewards for its own replies (GRPO, RLOO), from the checks of a --task or from a --reward model.

    Args:
        name: The new run's name. Default: the run's, and the method's.
    """
    return train_and_show("grpo", json, run, prompts or None, name=name, out=out, track=track, **settings)


@app.command(sort_key=2)
@with_settings("distill", "tuning", "data", "machine")
def distill(
    teacher: Teacher, student: Student, /, *data: Read, name: str | None = None, out: Out = None,
    track: Track = None, json: Json = False, **settings: Any,
) -> int:  # fmt: skip
    """Train a student to predict what a teacher predicts.

    Args:
        name: The new run's name. Default: the student's, and the method's.
    """
    return train_and_show("distill", json, teacher, student, data or None, name=name, out=out, track=track, **settings)
