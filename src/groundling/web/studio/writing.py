"""Generate text with the probability and the alternatives of each token."""

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
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.inference.engine import Engine, Request
from groundling.run.run import Run

CHOICES = 10


@dataclass(frozen=True)
class Choice:
    """A token that is possible at some position, and the model's probability for it, before any sampling settings."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class GeneratedToken(Choice):
    """A token that a model generated.

    `text` is what it adds to the text: "" if it ends inside a character, which comes with the token that completes it.
    `choices` are the most likely tokens there.
    """

    choices: tuple[Choice, ...]


def write(run: Run, before: Sequence[int], sampling: Sampling, max_new_tokens: int) -> Iterator[GeneratedToken]:
    """Continue the tokens `before` for `max_new_tokens`, or until the end of the document."""
    if max_new_tokens < 1:
        return
    tokenizer = run.tokenizer
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # holds back the first bytes of a character
    engine = Engine(run.model)
    engine.add(Request(before, max_new_tokens, sampling, tokenizer.end_ids, logprobs=CHOICES))
    while engine.free_slots == 0:
        for item in engine.step():
            assert item.logprob is not None
            text = markup(tokenizer, item.token) or decoder.decode(tokenizer.decode_bytes([item.token]))
            choices = tuple(Choice(token, piece(tokenizer, token), exp(logprob)) for token, logprob in item.top)
            yield GeneratedToken(item.token, text, exp(item.logprob), choices)


def piece(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token. Bytes that are not valid text are shown in hexadecimal."""
    if written := markup(tokenizer, token):
        return written
    content = tokenizer.pieces[token]
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "".join(f"⟨{byte:02X}⟩" for byte in content)


def markup(tokenizer: Tokenizer, token: int) -> str:
    """How a token is written that stands for no text, such as the end of a document or of a turn. Else empty."""
    if isinstance(tokenizer, ChatTokenizer) and token >= tokenizer.base.vocab_size:
        return tokenizer.markup[token - tokenizer.base.vocab_size].strip()
    return END_OF_TEXT if token in tokenizer.end_ids else ""


def opened(folder: Path, step: int | None = None) -> Run:
    """The run with the model of a checkpoint (None: the best one) in memory. Caches the last four.

    Raises ValueError or OSError if there is no such checkpoint, or it is damaged.
    """
    run = Run(folder)
    checkpoint = run.checkpoint if step is None else run.checkpoints.path(step)
    return _opened(folder, checkpoint, (checkpoint / "manifest.json").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(folder: Path, checkpoint: Path, modified: int) -> Run:
    run = Run(folder, checkpoint)
    _ = run.model  # load it now, not at the first token
    return run


@lru_cache(maxsize=1)  # it takes five times the text's size
def training_text(folder: Path) -> TrainingText:
    """The run's training text, indexed. Raises ValueError if it is gone, has changed, or is too long."""
    return Run(folder).training_text()
