"""Logits -> the next token.

The order is that of transformers: bias, repetition penalty, presence and frequency penalty, temperature, top-k, top-p,
min-p. Everything runs on the CPU in NumPy, on every device: a draw depends only on logits and seed, and with small
vocabularies NumPy calls are several times faster than torch calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from groundling.config import Sampling

_F64 = npt.NDArray[np.float64]


class Sampler:
    """Samples the tokens of one text: its settings, random numbers and token counts.

    Each token takes one random number, so a text does not depend on the others in its batch.
    """

    def __init__(self, sampling: Sampling, prompt: Iterable[int] = (), vocab_size: int = 0) -> None:
        self.sampling = sampling
        assert sampling.seed is not None
        self.random = np.random.Generator(np.random.PCG64(sampling.seed)).random
        self._penalized = (
            sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        )
        if self._penalized:
            self._counts = np.zeros(vocab_size)
            self._seen = np.zeros(vocab_size, dtype=bool)
            self._seen[list(prompt)] = True

    def adjust(self, logits: npt.NDArray[np.float32]) -> None:
        """Apply bias and penalties to logits (V,) in place."""
        s = self.sampling
        for token, bias in s.logit_bias.items():
            if token < len(logits):
                logits[token] += bias
        if self._penalized:
            seen, p = logits[self._seen], s.repetition_penalty
            logits[self._seen] = np.where(seen > 0, seen / p, seen * p)
            logits -= s.presence_penalty * (self._counts > 0) + s.frequency_penalty * self._counts

    def note(self, token: int) -> None:
        """Count a generated token."""
        if self._penalized:
            self._counts[token] += 1
            self._seen[token] = True


def choose(logits: npt.NDArray[np.float32], samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each row: logits (B, V) and B samplers -> B ids. May change the logits."""
    for row, sampler in zip(logits, samplers, strict=True):
        sampler.adjust(row)
    chosen = logits.argmax(-1)
    drawn = [i for i, sampler in enumerate(samplers) if sampler.sampling.temperature > 0]
    if drawn:
        sums = probabilities(logits[drawn], [samplers[i].sampling for i in drawn]).cumsum(-1)
        targets = sums[:, -1] * [samplers[i].random() for i in drawn]
        chosen[drawn] = (sums <= targets[:, None]).sum(-1)
    tokens: list[int] = chosen.tolist()
    for token, sampler in zip(tokens, samplers, strict=True):
        sampler.note(token)
    return tokens


def probabilities(logits: npt.NDArray[np.float32], settings: Sequence[Sampling]) -> _F64:
    """The distribution to sample from: logits (B, V) after bias and penalties -> probabilities (B, V)."""
    V = logits.shape[-1]
    top_k = [min(one.top_k, V) or V for one in settings]
    top_p, min_p = [one.top_p for one in settings], [one.min_p for one in settings]
    with np.errstate(over="ignore"):  # temperatures near 0
        x = (logits - logits.max(-1, keepdims=True)) / _column([one.temperature for one in settings])
    if min(top_k) < V or min(top_p) < 1:
        most = max(top_k)
        ordered = -np.sort(np.partition(-x, most - 1)[:, :most])  # most likely first
        ordered[np.arange(most) >= _column(top_k)] = math.inf
        if min(top_p) < 1:
            p = np.exp(np.where(ordered < math.inf, ordered, -math.inf))
            p /= p.sum(-1, keepdims=True)
            ordered[p.cumsum(-1) - p >= _column(top_p)] = math.inf  # the tokens before it are enough
        x[x < ordered.min(-1, keepdims=True)] = -math.inf
    p = np.exp(x)
    if max(min_p) > 0:
        p[p < _column(min_p)] = 0  # the most likely token has 1 here
    return np.asarray(p / p.sum(-1, keepdims=True))


def _column(values: Sequence[float]) -> _F64:
    return np.array(values, dtype=np.float64)[:, None]


def log_probabilities(logits: npt.NDArray[np.float32]) -> _F64:
    """The model's own log probabilities in nats, without bias, penalties and temperature: (..., V) -> (..., V)."""
    x = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))
