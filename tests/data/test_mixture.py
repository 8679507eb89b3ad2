"""Whose turn a window is follows from its number alone, and each text has had its share after any number of windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundling.config import CorpusSettings, Mix
from groundling.data.batches import WindowSampler
from groundling.data.corpus import Corpus
from groundling.data.fingerprint import fingerprint_of
from groundling.data.mixture import Mixture, MixtureSampler, Turns, distinct_tokens, prepare_mixture
from groundling.data.sources import find_source
from groundling.data.tokens import Tokens

Shares = Sequence[tuple[Fraction, Fraction]]


def mixed(paths: Sequence[Path], weights: Sequence[tuple[float, float]], **reading: object) -> Mixture:
    source = find_source(paths)
    return prepare_mixture(source, Mix(tuple(weights)), CorpusSettings(**reading), fingerprint_of(source))


def expected(shares: Shares, windows: int, n: int) -> list[Fraction]:
    """The sums of the shares of the first `n` windows: the area under straight lines."""
    changing = min(n, windows)
    rise = Fraction(changing * changing, 2 * windows) if windows else Fraction(0)
    return [start * changing + (end - start) * rise + end * (n - changing) for start, end in shares]


weights = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8).filter(
    lambda pairs: all(map(any, zip(*pairs, strict=True)))
)


@given(weights, st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_after_any_number_of_windows_each_text_has_had_its_share(pairs: list[tuple[int, int]], windows: int) -> None:
    shares = Mix(tuple(pairs)).shares
    texts, numbers = Turns(shares, windows).of(0, 120)
    counts = [0] * len(shares)
    for n, (text, number) in enumerate(zip(texts.tolist(), numbers.tolist(), strict=True), start=1):
        assert number == counts[text]  # each text counts its own windows
        counts[text] += 1
        for count, wanted, pair in zip(counts, expected(shares, windows, n), shares, strict=True):
            assert abs(count - wanted) <= (1 + len(shares) * max(pair)) / 2


def test_ten_windows_at_seven_to_three_are_seven_and_three() -> None:
    texts, _ = Turns(Mix(((0.7, 0.7), (0.3, 0.3))).shares, 0).of(0, 1000)
    assert texts.reshape(100, 10).sum(axis=1).tolist() == [3] * 100


def test_weights_that_change_give_exact_shares_of_the_run_and_then_stay() -> None:
    turns = Turns(Mix(((0.9, 0.1), (0.1, 0.9))).shares, 1000)
    assert turns.read(1000).tolist() == [500, 500]
    assert turns.read(100).tolist() == [86, 14]  # the mean share of the first tenth is 86%
    assert (turns.read(3000) - turns.read(1000)).tolist() == [200, 1800]
    assert turns.read(0).tolist() == [0, 0]


@given(weights, st.integers(0, 10**12), st.integers(0, 10**12), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_any_windows_can_be_asked_for_alone(pairs: list[tuple[int, int]], windows: int, first: int, n: int) -> None:
    turns = Turns(Mix(tuple(pairs)).shares, windows)
    texts, numbers = turns.of(first, 3 * n)
    again = [turns.of(first + n * i, n) for i in range(3)]
    assert np.array_equal(np.concatenate([each for each, _ in again]), texts)
    assert np.array_equal(np.concatenate([each for _, each in again]), numbers)
    counts = turns.read(first)
    assert counts.sum() == first
    assert all(numbers[texts == i].tolist()[:1] in ([], [count]) for i, count in enumerate(counts.tolist()))


@pytest.fixture
def texts(tmp_path: Path) -> list[Tokens]:
    """Two texts whose ids are their places: from 0 and from 10,000 on."""
    for name, first in (("a", 0), ("b", 10_000)):
        np.arange(first, first + 500, dtype=np.uint32).tofile(tmp_path / f"{name}.bin")
    return [Tokens(tmp_path / f"{name}.bin", "uint32", 0, 500) for name in "ab"]


def sampler(texts: Sequence[Tokens], batch_size: int) -> MixtureSampler:
    samplers = tuple(WindowSampler(each, 10, batch_size, 3, stream=(i,) if i else ()) for i, each in enumerate(texts))
    return MixtureSampler(samplers, Turns(Mix(((3.0, 1.0), (1.0, 3.0))).shares, 40), batch_size)


def test_each_text_is_read_in_its_own_order_an_epoch_at_a_time(texts: list[Tokens]) -> None:
    batches = [sampler(texts, 8)(step) for step in range(30)]
    assert all(torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1]) for batch in batches)
    rows = torch.cat([batch.tokens[:, 0] for batch in batches])
    alone = WindowSampler(texts[0], 10, 1, 3)  # as if there were no other text
    read = rows[rows < 10_000].tolist()
    assert read == [int(alone.offsets(i)[0]) for i in range(len(read))]
    other = rows[rows >= 10_000]
    assert len(other) > 49  # several epochs, each of which reads all windows once
    for start in range(0, len(other) // 49 * 49, 49):
        assert (other[start : start + 49].sort().values.diff() == 10).all()
    assert other[:49].tolist() != [start + 10_000 for start in read[:49]]  # not in the order of the first


def test_a_batch_does_not_depend_on_the_size_of_a_step(texts: list[Tokens]) -> None:
    by_two, by_six = sampler(texts, 2), sampler(texts, 6)
    assert torch.equal(
        torch.cat([by_two(step).tokens for step in range(9)]), torch.cat([by_six(i).tokens for i in range(3)])
    )
    assert by_six.epochs(49) == 3.0 and by_six.epochs_of_each(5) == [n / 49 for n in (17, 13)]


def test_tokens_on_a_device_give_the_same_batches(texts: list[Tokens]) -> None:
    read = sampler(texts, 8)
    held = dataclasses.replace(read, samplers=tuple(each.to(torch.device("cpu")) for each in read.samplers))
    assert all(each.on_device is not None for each in held.samplers)
    assert all(torch.equal(held(step).tokens, read(step).tokens) for step in range(6))


def test_a_text_alone_with_a_weight_is_the_text(texts: list[Tokens]) -> None:
    alone = MixtureSampler((WindowSampler(texts[0], 10, 6, 3),), Turns(Mix(((0.4, 0.4),)).shares, 0), 6)
    for step in (0, 1, 40):
        assert torch.equal(alone(step).tokens, WindowSampler(texts[0], 10, 6, 3)(step).tokens)
        assert alone.epochs(step) == WindowSampler(texts[0], 10, 6, 3).epochs(step)


# --- the texts


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, newline="")
        return path

    return write


def test_each_text_has_its_own_split_and_one_tokenizer(write: Callable[[str, str], Path]) -> None:
    paths = [write("a.txt", "to be or not to be. " * 50), write("b.txt", "ХОРОШО " * 100)]
    text = mixed(paths, [(0.5, 0.5), (0.5, 0.5)])
    first, second = text.corpora
    assert first.tokenizer == second.tokenizer and first.tokenizer.vocab_size == len(set("to be or not." + "ХОРОШО"))
    assert [len(each.train) for each in text.corpora] == [900, 630]
    assert [len(each.validation) for each in text.corpora] == [100, 70]
    assert text.token_counts == (1530, 170) and text.name == "a + b" and text.n_characters == 1700
    assert second.tokenizer.decode(second.validation.read(0, 7)) == "ХОРОШО "


def test_equal_names_get_a_number(write: Callable[[str, str], Path]) -> None:
    paths = [write("one/x.txt", "abc" * 50), write("two/x.txt", "abd" * 50)]
    assert [part.name for part in mixed(paths, [(1, 1), (1, 1)]).parts] == ["x", "x 2"]


def test_bpe_is_fitted_to_every_training_part_and_to_no_validation_part(write: Callable[[str, str], Path]) -> None:
    """The end of the first text is inside the two together, so splitting them as one would learn from it."""
    paths = [write("a.txt", "ab" * 450 + "zq" * 50), write("b.txt", "cd" * 450 + "xy" * 50)]
    reading = {"tokenizer": "bpe", "vocab_size": 300}
    pieces = b" ".join(mixed(paths, [(1, 1), (1, 1)], **reading).tokenizer.pieces[256:])
    assert b"ab" in pieces and b"cd" in pieces and b"zq" not in pieces and b"xy" not in pieces
    together = Corpus.open(paths, CorpusSettings(**reading)).tokenizer
    assert b"zq" in b" ".join(together.pieces[256:])


def test_shares_by_size_repeat_when_the_whole_text_would(write: Callable[[str, str], Path]) -> None:
    paths = [write("a.txt", "abc" * 300), write("b.txt", "abd" * 100)]
    by_size, half = mixed(paths, [(3, 3), (1, 1)]), mixed(paths, [(1, 1), (1, 1)])
    assert distinct_tokens(by_size) == pytest.approx(1080) == by_size.token_counts[0]
    assert distinct_tokens(half) == pytest.approx(2 * (810 * 270) ** 0.5)
    assert distinct_tokens(half.corpora[0]) == 810


def test_texts_that_share_files_are_refused(write: Callable[[str, str], Path]) -> None:
    path = write("texts/a.txt", "abc" * 300)
    with pytest.raises(ValueError, match="all files of a are read already, by a text before it"):
        mixed([path.parent, path], [(1, 1), (1, 1)])
