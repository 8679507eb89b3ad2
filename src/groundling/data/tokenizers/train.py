"""Fit a tokenizer to a text, or read one from a file."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from groundling.config import CorpusSettings
from groundling.data.documents import Document
from groundling.data.progress import Notice, Progress, ProgressMeter, silent
from groundling.data.sources import CorpusPath, Source, find_source
from groundling.data.split import split_point
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer

_SAMPLE = 64 * 2**20  # characters to train a BPE on, at most: memory grows with the number of different words


def train_tokenizer(
    corpus: CorpusPath | Sequence[CorpusPath],
    *,
    kind: Literal["char", "byte", "bpe"] = "bpe",
    vocab_size: int = CorpusSettings.vocab_size,
    notice: Notice = silent,
    progress: Progress = silent,
    **reading: Any,
) -> Tokenizer:
    """Train a tokenizer on a text: the same one as for a run with these settings. Use `save` to keep it.

    `bpe` trains on the text without its validation part (the last tenth), and on at most 67 million characters, spread
    evenly. `reading` are settings of the files: `glob`, `format`, `field`, `document_separator`.

    Raises ValueError or OSError with a sentence if the text cannot be read.
    """
    notice = cache(notice)  # without repetition: `bpe` reads the text twice
    settings = CorpusSettings(kind, vocab_size, **reading)
    return fit_tokenizer(find_source(corpus, settings), settings, notice, progress)


def fit_tokenizer(source: Source, settings: CorpusSettings, notice: Notice, progress: Progress) -> Tokenizer:
    """The tokenizer of `settings`: see `train_tokenizer`, and `Tokenizer.load` for tokenizer files.

    The vocabulary of `char` comes from the whole text. `bpe` does not see the validation part.
    """
    if settings.tokenizer == "byte":
        return ByteTokenizer()
    if settings.tokenizer not in ("char", "bpe"):
        loaded = Tokenizer.load(Path(settings.tokenizer))
        if loaded.normalizer:
            notice(loaded.normalizer_notice)
        return loaded
    sizes = array("q")  # characters of each document, and one for its end

    def counted() -> Iterator[str]:
        for document in _read(source, "reading", notice, progress):
            sizes.append(1)
            for chunk in document.chunks:
                sizes[-1] += len(chunk)
                yield chunk
        if sum(sizes) == len(sizes):
            raise ValueError(f"{source.name} is empty: there is no text in it.")

    if settings.tokenizer == "char":
        characters = CharTokenizer.fit(counted()).characters
        return CharTokenizer(characters, end_of_text=len(sizes) > 1)
    for _ in counted():
        pass
    ends = np.array(sizes, dtype=np.int64).cumsum()
    stop = split_point(ends, sum(sizes), settings.val_fraction)
    if stop > _SAMPLE:
        notice(f"Training the tokenizer on {_SAMPLE / 1e6:.0f} million characters, spread evenly over the text.")
    tokenizer = BpeTokenizer.fit(_before(stop, source, notice, progress), settings.vocab_size)
    if tokenizer.vocab_size < settings.vocab_size:
        notice(
            f"The vocabulary has {tokenizer.vocab_size:,} tokens instead of {settings.vocab_size:,}: no other pair of "
            "tokens occurs twice in the training part."
        )
    return tokenizer


def _read(source: Source, doing: str, notice: Notice, progress: Progress) -> Iterator[Document]:
    meter = ProgressMeter(progress, doing, source.size)
    for file in source.files:
        yield from source.documents(file, notice, meter.add)


def _before(stop: int, source: Source, notice: Notice, progress: Progress) -> Iterator[str]:
    """The text before `stop`, at most `_SAMPLE` characters of it, spread evenly.

    `stop` counts the characters of each document, and one more for its end."""
    share, position = min(1.0, _SAMPLE / max(stop, 1)), 0
    for document in _read(source, "training a tokenizer on", notice, progress):
        for chunk in document.chunks:
            yield chunk[: int(share * min(len(chunk), max(0, stop - position)))]
            position += len(chunk)
        position += 1
