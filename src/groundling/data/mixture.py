"""Several texts with weights: each is a `Corpus` of its own, and every window of a batch is one text's turn.

Whose turn it is follows from the number of the window alone. Time runs in ticks, and a text whose shares up to tick t
add up to C(t) has had C(t) windows by then, rounded to a whole number; the texts that gain one in a tick take their
turns in order. So no random number decides: after any number of windows, each text has had its share, up to
(1 + k w) / 2 windows, for the largest weight w that it had and k texts. The windows of a text come in the same order as
if it were trained on alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from groundling.config import CorpusSettings, Mix
from groundling.data.batches import Batch, WindowSampler, fits, sent
from groundling.data.corpus import Corpus, common_tokenizer, prepare
from groundling.data.fingerprint import TextFingerprint
from groundling.data.progress import Notice, Progress, silent
from groundling.data.sources import Source
from groundling.data.tokenizers.base import Tokenizer
from groundling.machine import Machine

_I64 = npt.NDArray[np.int64]


class Part(NamedTuple):
    """One of the texts that a run is trained on, and its share of the windows: over the whole run, and at its end."""

    corpus: Corpus
    name: str
    mean: float
    end: float


@dataclass(frozen=True)
class Mixture:
    """Several tokenized texts, in the order of their weights in `mix`. All have the same tokenizer."""

    corpora: tuple[Corpus, ...]
    mix: Mix
    fingerprint: str
    """Of all their files together."""

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The texts with their shares. Equal names get a number."""
        seen, parts = Counter[str](), list[Part]()
        for corpus, (start, end) in zip(self.corpora, self.mix.shares, strict=True):
            seen[corpus.name] += 1
            number = f" {seen[corpus.name]}" if seen[corpus.name] > 1 else ""
            parts.append(Part(corpus, corpus.name + number, float((start + end) / 2), float(end)))
        return tuple(parts)

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self.parts)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpora[0].tokenizer

    @property
    def n_documents(self) -> int:
        return sum(corpus.n_documents for corpus in self.corpora)

    @property
    def n_characters(self) -> int:
        return sum(corpus.n_characters for corpus in self.corpora)

    @property
    def token_counts(self) -> tuple[int, int]:
        """Tokens of all training parts, and of all validation parts."""
        return sum(len(corpus.train) for corpus in self.corpora), sum(len(corpus.validation) for corpus in self.corpora)

    @property
    def n_train(self) -> int:
        """Windows are not counted as examples."""
        return 0

    @property
    def odd(self) -> Mapping[str, int]:
        return sum((Counter(corpus.odd) for corpus in self.corpora), Counter())


Text = Corpus | Mixture


def parts_of(text: Text) -> tuple[Part, ...]:
    """The texts of a mixture with their shares, or the one text."""
    return text.parts if isinstance(text, Mixture) else (Part(text, text.name, 1.0, 1.0),)


def distinct_tokens(text: Text) -> float:
    """How many tokens of training text a run has before it repeats itself. For a mix, it is the geometric mean of where
    each text begins to repeat: a small one with a large weight does so early."""
    parts = parts_of(text)
    if len(parts) == 1:
        return len(parts[0].corpus.train)
    return math.exp(sum(part.mean * math.log(len(part.corpus.train) / part.mean) for part in parts if part.mean))


def prepare_mixture(
    source: Source, mix: Mix, settings: CorpusSettings, contents: TextFingerprint, tokenizer: Tokenizer | None = None,
    notice: Notice = silent, progress: Progress = silent,
) -> Mixture:  # fmt: skip
    """Tokenize each input of `source`, or reuse it from the cache. Without `tokenizer`, one is fitted to all of them.

    Raises ValueError if they are not as many as the weights, or if one has no files of its own.
    """
    parts = source.parts
    if len(parts) != len(mix.weights):
        raise ValueError(
            f"--mix has {len(mix.weights)} weights for {len(parts)} texts. Instead of a pattern, give a folder and "
            "--glob."
        )
    for part in parts:
        if not part.files:
            raise ValueError(f"--mix: all files of {part.name} are read already, by a text before it.")
    for sentence in source.notices:
        notice(sentence)
    if tokenizer is None:
        tokenizer = common_tokenizer(parts, contents.parts, settings, notice, progress)
    corpora = (
        prepare(part, settings, tokenizer=tokenizer, fingerprint=fingerprint, notice=notice, progress=progress)
        for part, fingerprint in zip(parts, contents.parts, strict=True)
    )
    return Mixture(tuple(corpora), mix, contents.fingerprint)


@dataclass(frozen=True)
class Turns:
    """Which text each window comes from. Shares change linearly from start to end over so many `windows`."""

    shares: Sequence[tuple[Fraction, Fraction]]
    windows: int

    @cached_property
    def _whole(self) -> tuple[int, npt.NDArray[Any], npt.NDArray[Any]]:
        """The shares as whole numbers of any size, and what they add up to."""
        unit = math.lcm(*(share.denominator for pair in self.shares for share in pair))
        starts, ends = np.array([[int(share * unit) for share in pair] for pair in self.shares], dtype=object).T
        return unit, starts, ends

    def counts(self, ticks: Sequence[int]) -> _I64:
        """How many windows each text has had by each of these ticks: (ticks, texts). Exact, however many."""
        unit, starts, ends = self._whole
        n = max(self.windows, 1)
        t = np.array(ticks, dtype=object)[:, None]
        changing = np.minimum(t, n if self.windows else 0)
        sums = 2 * n * (starts * changing + ends * (t - changing)) + (ends - starts) * changing**2
        return ((sums + n * unit) // (2 * n * unit)).astype(np.int64)

    def of(self, first: int, n: int) -> tuple[_I64, _I64]:
        """The text of each of `n` windows from the `first` on, and the number of the window among those of its text."""
        k = len(self.shares)  # rounding moves a window by less than k ticks
        counts = self.counts(range(max(first - k, 0), first + n + k + 1))
        ticks, texts = np.nonzero(np.diff(counts, axis=0))
        here = slice(first - int(counts[0].sum()), first - int(counts[0].sum()) + n)
        return texts[here], counts[ticks, texts][here]

    def read(self, n: int) -> _I64:
        """How many of the first `n` windows come from each text: (texts,)."""
        before = self.counts([max(n - len(self.shares), 0)])[0]
        done = int(before.sum())
        return before + np.bincount(self.of(done, n - done)[0], minlength=len(self.shares))


@dataclass(frozen=True)
class MixtureSampler:
    """Batches of `batch_size` windows, one for each optimizer step, each window from one of several texts."""

    samplers: tuple[WindowSampler, ...]
    turns: Turns
    batch_size: int

    @staticmethod
    def of(text: Mixture, steps: int, block_size: int, batch_size: int, seed: int) -> MixtureSampler:
        """Weights change over so many `steps`. Raises ValueError if a text is shorter than one window and the token
        after it."""
        samplers = tuple(
            WindowSampler(corpus.train, block_size, batch_size, seed, stream=(i,) if i else ())
            for i, corpus in enumerate(text.corpora)
        )
        return MixtureSampler(samplers, Turns(text.mix.shares, steps * batch_size), batch_size)

    def __call__(self, step: int) -> Batch:
        """The windows of a step, with the next tokens as targets."""
        texts, numbers = self.turns.of(step * self.batch_size, self.batch_size)
        order = np.argsort(texts, kind="stable")  # by text
        windows = torch.cat(
            [(sampler := self.samplers[i]).read(sampler.starts(numbers[texts == i])) for i in np.unique(texts)]
        )
        windows = windows[sent(torch.from_numpy(np.argsort(order)), windows.device)]
        return Batch(windows[:, :-1], windows[:, 1:])

    def epochs(self, step: int) -> float:
        """Windows read after `step` steps, as a multiple of those in all texts."""
        return step * self.batch_size / sum(sampler.windows_per_epoch for sampler in self.samplers)

    def epochs_of_each(self, step: int) -> list[float]:
        """Epochs of each text after `step` steps."""
        read = self.turns.read(step * self.batch_size).tolist()
        return [n / sampler.windows_per_epoch for n, sampler in zip(read, self.samplers, strict=True)]

    def near(self, machine: Machine) -> MixtureSampler:
        """The same batches, made on the machine's GPU if all texts together fit in an eighth of its memory."""
        if not fits(sum(len(sampler.tokens) for sampler in self.samplers), machine):
            return self
        return dataclasses.replace(self, samplers=tuple(sampler.near(machine) for sampler in self.samplers))
