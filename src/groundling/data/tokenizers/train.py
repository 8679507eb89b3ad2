"""Fit a tokenizer to a text, or read one from a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from groundling.config import CorpusSettings
from groundling.data.progress import Notice, Progress, ProgressMeter, silent
from groundling.data.sources import Source, find_source, read_text
from groundling.data.split import split_point
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer

_SAMPLE = 64 * 2**20  # characters to train a BPE on, at most: memory grows with the number of different words


def train_tokenizer(
    corpus: str | os.PathLike[str],
    *,
    kind: Literal["char", "byte", "bpe"] = "bpe",
    vocab_size: int = CorpusSettings.vocab_size,
    glob: str | None = None,
    notice: Notice = silent,
    progress: Progress = silent,
) -> Tokenizer:
    """Train a tokenizer on a text: the same one as for a run with these settings. Use `save` to keep it.

    `bpe` trains on the text without its validation part (the last tenth), and on at most 67 million characters, spread
    evenly. Raises ValueError or OSError with a sentence if the text cannot be read.
    """
    notice = cache(notice)  # without repetition: `bpe` reads the text twice
    return fit_tokenizer(find_source(corpus, glob), CorpusSettings(kind, vocab_size, glob), notice, progress)


def fit_tokenizer(source: Source, settings: CorpusSettings, notice: Notice, progress: Progress) -> Tokenizer:
    """The tokenizer of `settings`: see `train_tokenizer`, and `Tokenizer.load` for tokenizer files.

    The vocabulary of `char` comes from the whole text. `bpe` does not see the validation part.
    """
    if settings.tokenizer == "byte":
        return ByteTokenizer()
    if settings.tokenizer not in ("char", "bpe"):
        return Tokenizer.load(Path(settings.tokenizer))
    documents = _read(source, "reading", notice, progress)
    if settings.tokenizer == "char":
        chunks = (chunk for document in documents for chunk in document)
        return CharTokenizer.fit(chunks, end_of_text=len(source.documents) > 1)
    sizes = [sum(map(len, document)) + 1 for document in documents]  # each with its end token
    ends = np.array(sizes, dtype=np.int64).cumsum()
    stop = split_point(ends, int(ends[-1]), settings.val_fraction)
    if stop > _SAMPLE:
        notice(f"Training the tokenizer on {_SAMPLE / 1e6:.0f} million characters, spread evenly over the text.")
    tokenizer = BpeTokenizer.fit(_before(stop, source, notice, progress), settings.vocab_size)
    if tokenizer.vocab_size < settings.vocab_size:
        notice(
            f"The vocabulary has {tokenizer.vocab_size:,} tokens instead of {settings.vocab_size:,}: no other pair of "
            "tokens occurs twice in the training part."
        )
    return tokenizer


def _read(source: Source, doing: str, notice: Notice, progress: Progress) -> Iterator[Iterator[str]]:
    meter = ProgressMeter(progress, doing, source.size)
    for document in source.documents:
        yield read_text(document, notice, meter.add)


def _before(stop: int, source: Source, notice: Notice, progress: Progress) -> Iterator[str]:
    """The text before `stop`, at most `_SAMPLE` characters of it, spread evenly.

    `stop` counts the characters of each document, and one more for its end."""
    share, position = min(1.0, _SAMPLE / max(stop, 1)), 0
    for document in _read(source, "training a tokenizer on", notice, progress):
        for chunk in document:
            yield chunk[: int(share * min(len(chunk), max(0, stop - position)))]
            position += len(chunk)
        position += 1
