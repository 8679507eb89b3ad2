"""The tokenizer of a text: read from a file, or made from the text itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from groundling.config import CorpusSettings
from groundling.corpus.bpe import BpeTokenizer
from groundling.corpus.sources import Source, find_source, read_text
from groundling.corpus.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many bytes."""
Notice = Callable[[str], None]
"""Told a sentence that the user should see."""

_SAMPLE = 64 * 2**20  # characters that a BPE is learned from at most: its memory grows with the different words


def silent(*_: Any) -> None:
    pass


def once(notice: Notice) -> Notice:
    """The same, but each sentence a single time."""
    said = set[str]()

    def tell(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            notice(sentence)

    return tell


class Meter:
    """Counts bytes towards a progress display."""

    def __init__(self, progress: Progress, doing: str, total: int) -> None:
        self._progress, self._doing, self._total, self._done = progress, doing, total, 0

    def add(self, n: int) -> None:
        # A compressed file gives more bytes than lie on the disk.
        self._done = min(self._done + n, self._total)
        self._progress(self._doing, self._done, self._total)


def train_tokenizer(
    corpus: str | os.PathLike[str],
    *,
    kind: Literal["char", "byte", "bpe"] = "bpe",
    vocab_size: int = CorpusSettings.vocab_size,
    glob: str | None = None,
    notice: Notice = silent,
    progress: Progress = silent,
) -> Tokenizer:
    """The tokenizer that a run on this text with the same settings would have, to `save` and use elsewhere.

    `bpe` learns from the text without its validation part (a tenth, at its end), and from 64 million characters of
    it at most, spread evenly. Raises ValueError or OSError with a sentence if the text cannot be read.
    """
    return fit_tokenizer(find_source(corpus, glob), CorpusSettings(kind, vocab_size, glob), once(notice), progress)


def fit_tokenizer(source: Source, settings: CorpusSettings, notice: Notice, progress: Progress) -> Tokenizer:
    """The tokenizer that `settings` ask for: see `train_tokenizer`, and `Tokenizer.load` for those of a file.

    Characters are those of the whole text; nothing else about its validation part is learned from.
    """
    if settings.tokenizer == "byte":
        return ByteTokenizer()
    if settings.tokenizer not in ("char", "bpe"):
        return Tokenizer.load(Path(settings.tokenizer))
    documents = _read(source, "reading", notice, progress)
    if settings.tokenizer == "char":
        chunks = (chunk for document in documents for chunk in document)
        return CharTokenizer.fit(chunks, end_of_text=len(source.documents) > 1)
    sizes = [sum(map(len, document)) + 1 for document in documents]  # with the mark that ends each
    ends = np.array(sizes, dtype=np.int64).cumsum()
    stop = border(ends, int(ends[-1]), settings.val_fraction)
    if stop > _SAMPLE:
        notice(f"The tokenizer learns from {_SAMPLE / 1e6:.0f} million characters, spread evenly over the text.")
    tokenizer = BpeTokenizer.fit(_before(stop, source, notice, progress), settings.vocab_size)
    if tokenizer.vocab_size < settings.vocab_size:
        notice(
            f"The text gives a vocabulary of {tokenizer.vocab_size:,} tokens and not {settings.vocab_size:,}: no "
            "other pair of tokens occurs twice in its training part."
        )
    return tokenizer


def border(ends: npt.NDArray[np.int64], total: int, val_fraction: float) -> int:
    """Where the validation part begins: at the document border nearest to its share of the text.

    A border that would make the validation part less than half or more than twice its share is not
    used: the text is then cut inside a document, as it is where there is only one.
    """
    cut = int((1 - val_fraction) * total)
    near = np.searchsorted(ends, cut)
    candidates = [int(end) for end in ends[max(near - 1, 0) : near + 1]]
    border = min(candidates, key=lambda end: abs(end - cut), default=cut)
    return border if 0.5 <= (total - border) / max(total - cut, 1) <= 2 and border > 0 else cut


def _read(source: Source, doing: str, notice: Notice, progress: Progress) -> Iterator[Iterator[str]]:
    meter = Meter(progress, doing, source.size)
    for document in source.documents:
        yield read_text(document, notice, meter.add)


def _before(stop: int, source: Source, notice: Notice, progress: Progress) -> Iterator[str]:
    """The text before `stop`, where a document counts its characters and one more; `_SAMPLE` of it, spread evenly."""
    share, position = min(1.0, _SAMPLE / max(stop, 1)), 0
    for document in _read(source, "learning tokens from", notice, progress):
        for chunk in document:
            yield chunk[: int(share * min(len(chunk), max(0, stop - position)))]
            position += len(chunk)
        position += 1
