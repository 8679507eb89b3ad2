"""N-gram losses: against counting with dictionaries, at the edges, and within their bounds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundling.analysis.ngrams import bits_per_byte, ngram_losses, spread
from groundling.data.tokens import Tokens

Store = Callable[[list[int]], Tokens]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Ids as a token file."""

    def store(ids: list[int]) -> Tokens:
        path = tmp_path / f"{len(list(tmp_path.glob('*.bin')))}.bin"
        np.array(ids, np.uint32).tofile(path)
        return Tokens(path, "uint32", 0, len(ids))

    return store


def slowly(train: list[int], validation: list[int], vocab_size: int, order: int) -> float:
    """The same quantity by the formula, word for word, with dictionaries."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for n in range(order):
        for i in range(n, len(train)):
            counts[tuple(train[i - n : i])][train[i]] += 1

    def p(token: int, context: tuple[int, ...]) -> float:
        shorter = p(token, context[1:]) if context else 1 / vocab_size
        after = counts.get(context)
        if not after:
            return shorter
        return (after[token] + len(after) * shorter) / (sum(after.values()) + len(after))

    if order == 0:
        return math.log(vocab_size)
    guesses = [p(token, tuple(validation[max(0, i - order + 1) : i])) for i, token in enumerate(validation)]
    return -sum(map(math.log, guesses)) / len(guesses)


def test_the_same_as_counting_with_dictionaries(prose: str, store: Store) -> None:
    ids = [ord(c) % 97 for c in prose[:8000]]
    train, validation = ids[:7000], ids[7000:]
    losses = ngram_losses(store(train), store(validation), 97)
    assert len(losses) > 4
    assert losses == pytest.approx([slowly(train, validation, 97, n) for n in range(len(losses))], abs=1e-12)


def test_tokens_that_the_training_part_lacks_and_large_vocabularies(store: Store) -> None:
    train, validation = [7, 60_000, 7, 60_000, 7, 3] * 5, [7, 60_000, 123_456, 123_456, 7, 3]
    losses = ngram_losses(store(train), store(validation), 200_000, max_order=3)
    assert losses == pytest.approx([slowly(train, validation, 200_000, n) for n in range(4)], abs=1e-12)


def test_it_ends_two_orders_behind_the_best(prose: str, store: Store) -> None:
    ids = [ord(c) for c in prose]
    losses = ngram_losses(store(ids[:27_000]), store(ids[27_000:]), 128, max_order=20)
    assert int(np.argmin(losses)) == len(losses) - 3
    assert losses[:3] == ngram_losses(store(ids[:27_000]), store(ids[27_000:]), 128, max_order=2)


def test_short_texts(store: Store) -> None:
    assert ngram_losses(store([0]), store([0]), 1) == [0.0, 0.0]
    assert len(ngram_losses(store([0, 1]), store([1]), 2)) == 2
    with pytest.raises(ValueError, match="too short"):
        ngram_losses(store([0, 1]), store([]), 2)


def test_long_texts_are_sampled_from_all_over(store: Store) -> None:
    rng = np.random.default_rng(1)
    halves = np.concatenate([rng.integers(0, 4, 40_000), rng.integers(4, 8, 40_000)])
    tokens = store(halves.tolist())
    sample = spread(tokens, 8_000)
    assert 7_700 < len(sample) <= 8_000
    assert 0.4 < (sample < 4).mean() < 0.6
    # Both halves are known, so that neither surprises: near ln 8 for single tokens, ln 4 for those in their half.
    losses = ngram_losses(tokens, store(halves[30_000:50_000].tolist()), 8, max_order=2, training_tokens=8_000)
    assert losses[1] == pytest.approx(math.log(8), abs=0.02)
    assert losses[2] == pytest.approx(math.log(4), abs=0.05)


def test_bits_per_byte() -> None:
    assert bits_per_byte(math.log(256), n_tokens=10, n_bytes=10) == pytest.approx(8)
    assert bits_per_byte(math.log(2), n_tokens=10, n_bytes=40) == pytest.approx(0.25)
