"""Fit a tokenizer to a text, or read one from a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from groundling.config import CorpusSettings
from groundling.data.fingerprint import fingerprint_of
from groundling.data.progress import Notice, Progress, silent
from groundling.data.shards.count import CountedText, count_text
from groundling.data.shards.duplicates import without_copies
from groundling.data.shards.pool import processes_for
from groundling.data.sources import CorpusPath, Source, find_source
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
    evenly. `reading` are settings of the files: `glob`, `format`, `field`, `document_separator`, `deduplicate`.

    Raises ValueError or OSError with a sentence if the text cannot be read.
    """
    notice = cache(notice)  # without repetition: `bpe` reads the text twice
    settings = CorpusSettings(kind, vocab_size, **reading)
    source = find_source(corpus, settings)
    processes, fingerprint = processes_for(source.size), None
    if settings.deduplicate:
        fingerprint = fingerprint_of(source, progress).fingerprint
        source = without_copies(source, fingerprint, processes, notice, progress)
    return fit_tokenizer(source, settings, notice, progress, processes=processes, fingerprint=fingerprint)


def fit_tokenizer(
    source: Source | None, settings: CorpusSettings, notice: Notice, progress: Progress, *,
    processes: int = 1, fingerprint: str | None = None,
) -> Tokenizer:  # fmt: skip
    """The tokenizer of `settings`: see `train_tokenizer`, and `Tokenizer.load` for tokenizer files, which need no text.

    The vocabulary of `char` comes from the whole text. `bpe` does not see the validation part. The result does not
    depend on the number of processes. With `fingerprint`, a text that is another one by now raises ValueError.
    """
    if settings.tokenizer == "byte":
        return ByteTokenizer()
    if settings.tokenizer not in ("char", "bpe"):
        loaded = Tokenizer.load(Path(settings.tokenizer))
        if loaded.normalizer:
            notice(loaded.normalizer_notice)
        return loaded
    assert source is not None
    text = count_text(source, fingerprint, None, processes, notice, progress)
    return fit_to([text], settings, notice, progress, processes)


def fit_to(
    texts: Sequence[CountedText], settings: CorpusSettings, notice: Notice, progress: Progress, processes: int
) -> Tokenizer:
    """A tokenizer for several texts: `char` with all their characters, or `bpe` fitted to all their training parts."""
    if settings.tokenizer == "char":
        characters = sorted(set().union(*(text.characters for text in texts)))
        return CharTokenizer(characters, end_of_text=any(text.n_documents > 1 for text in texts))
    stops = [text.split_point(settings.val_fraction) for text in texts]
    if sum(stops) > _SAMPLE:
        notice(f"Training the tokenizer on {_SAMPLE / 1e6:.0f} million characters, spread evenly over the text.")
    sample = (
        piece
        for text, stop in zip(texts, stops, strict=True)
        for piece in text.sample(stop, _SAMPLE * stop // max(sum(stops), 1), processes, notice, progress)
    )
    tokenizer = BpeTokenizer.fit(sample, settings.vocab_size)
    if tokenizer.vocab_size < settings.vocab_size:
        notice(
            f"The vocabulary has {tokenizer.vocab_size:,} tokens instead of {settings.vocab_size:,}: no other pair of "
            "tokens occurs twice in the training part."
        )
    return tokenizer
