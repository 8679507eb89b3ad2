"""A model writes, and tells of each token how likely it was and what it would have written instead."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from groundling.corpus.tokenizer import END_OF_TEXT, Tokenizer
from groundling.evaluation.originality import TrainingText
from groundling.inference.engine import prefill
from groundling.inference.sampling import Sampling, pick
from groundling.run import Run

CHOICES = 10


@dataclass(frozen=True)
class Choice:
    """A token that might stand in a place, and its probability there."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class Written:
    """A token that a model wrote.

    `text` is what it adds: "" where it ends inside of a character, which then comes with the token that ends it.
    `probability` is what the model gave it before any sampling knob, and `choices` are the likeliest tokens there.
    """

    token: int
    text: str
    probability: float
    choices: tuple[Choice, ...]


@torch.inference_mode()
def write(run: Run, before: Sequence[int], sampling: Sampling, max_new_tokens: int) -> Iterator[Written]:
    """Continue the tokens `before` until the end of a document, or for `max_new_tokens`."""
    model, tokenizer = run.model, run.tokenizer
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    generator, cache, capacity = sampling.generator(), model.new_cache(), model.config.block_size
    window = list(before)[-capacity:]
    logits = prefill(model, window, cache)
    for _ in range(max_new_tokens):
        token = int(pick(logits, sampling, generator))
        probabilities = logits[0].float().softmax(-1).cpu()
        likeliest = probabilities.topk(min(CHOICES, len(probabilities)))
        choices = tuple(
            Choice(i, piece(tokenizer, i), p)
            for i, p in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        )
        if token == tokenizer.end_of_text_id:
            yield Written(token, END_OF_TEXT, float(probabilities[token]), choices)
            return
        yield Written(token, decoder.decode(tokenizer.decode_bytes([token])), float(probabilities[token]), choices)
        window.append(token)
        if cache.length < capacity:
            logits = model(torch.tensor([[token]], device=model.device), cache)[:, -1]
        else:
            window = window[-max(capacity // 2, 1) :]
            cache.reset()
            logits = prefill(model, window, cache)


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
