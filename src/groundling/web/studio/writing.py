"""A model writes, and tells of each token how likely it was and what it would have written instead."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp
from pathlib import Path

from groundling.analysis.memorization import TrainingText
from groundling.config import Sampling
from groundling.data.tokenizers.base import END_OF_TEXT, Tokenizer
from groundling.inference.engine import Engine, Request
from groundling.run.run import Run

CHOICES = 10


@dataclass(frozen=True)
class Choice:
    """A token that might stand in a place, and its probability there."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class GeneratedToken:
    """A token that a model wrote.

    `text` is what it adds: "" where it ends inside of a character, which then comes with the token that ends it.
    `probability` is what the model gave it before any sampling knob, and `choices` are the likeliest tokens there.
    """

    token: int
    text: str
    probability: float
    choices: tuple[Choice, ...]


def write(run: Run, before: Sequence[int], sampling: Sampling, max_new_tokens: int) -> Iterator[GeneratedToken]:
    """Continue the tokens `before` until the end of a document, or for `max_new_tokens`."""
    if max_new_tokens < 1:
        return
    tokenizer = run.tokenizer
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # keeps the beginning of a character to itself
    engine = Engine(run.model)
    engine.add(Request(before, max_new_tokens, sampling, tokenizer.end_of_text_id, logprobs=CHOICES))
    while engine.free_slots == 0:
        for item in engine.step():
            assert item.logprob is not None
            ended = item.token == tokenizer.end_of_text_id
            text = END_OF_TEXT if ended else decoder.decode(tokenizer.decode_bytes([item.token]))
            choices = tuple(Choice(token, piece(tokenizer, token), exp(logprob)) for token, logprob in item.top)
            yield GeneratedToken(item.token, text, exp(item.logprob), choices)


def piece(tokenizer: Tokenizer, token: int) -> str:
    """A token as text by itself; bytes that are no text in hexadecimal."""
    if token == tokenizer.end_of_text_id:
        return END_OF_TEXT
    content = tokenizer.pieces[token]
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "".join(f"⟨{byte:02X}⟩" for byte in content)


def opened(folder: Path, step: int | None = None) -> Run:
    """The run with the model of a checkpoint (the best one if None) in memory. The last few are kept there.

    Raises ValueError or OSError if there is no such checkpoint, or it is damaged.
    """
    run = Run(folder)
    checkpoint = run.checkpoint if step is None else run.checkpoints.path(step)
    return _opened(folder, checkpoint, (checkpoint / "manifest.json").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(folder: Path, checkpoint: Path, written: int) -> Run:
    run = Run(folder, checkpoint)
    _ = run.model  # read now, and not at the first token
    return run


@lru_cache(maxsize=1)  # it takes five times the text's size
def training_text(folder: Path) -> TrainingText:
    """Raises ValueError if it is gone, has changed, or is too long."""
    return Run(folder).training_text()
