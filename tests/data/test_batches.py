"""A batch is a pure function of seed and step, and an epoch shows every window once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundling.data.batches import Batch, WindowSampler, permute
from groundling.data.corpus import Corpus
from groundling.data.hashing import mix
from groundling.data.tokens import Tokens

KEYS = np.array([1, 2, 3, 4], dtype=np.uint64)


@pytest.fixture
def counting(tmp_path: Path) -> Callable[..., Tokens]:
    """`n` tokens whose ids are their places."""

    def counting(n: int) -> Tokens:
        np.arange(n, dtype=np.uint32).tofile(tmp_path / "tokens.bin")
        return Tokens(tmp_path / "tokens.bin", "uint32", 0, n)

    return counting


def epoch(tokens: Tokens, block_size: int, number: int) -> npt.NDArray[np.int64]:
    """The starts of all windows of an epoch, in order: it is one batch of that size."""
    n = WindowSampler(tokens, block_size, 1, seed=3).windows_per_epoch
    return WindowSampler(tokens, block_size, n, seed=3).offsets(number)


# --- the permutation


@pytest.mark.parametrize(
    "n", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 255, 256, 257, 1000, 4095, 4096, 4097, 65537]
)
def test_permute_is_a_bijection(n: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, KEYS)), np.arange(n))


@given(st.integers(1, 3000), st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4))
def test_permute_is_a_bijection_for_any_keys(n: int, keys: list[int]) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, np.array(keys, dtype=np.uint64))), np.arange(n))


@given(st.integers(2**31, 2**50), st.data())
def test_any_place_of_a_huge_corpus_can_be_asked_for_alone(n: int, data: st.DataObject) -> None:
    places = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=20))), dtype=np.int64)
    together = permute(places, n, KEYS)
    assert ((together >= 0) & (together < n)).all() and len(set(together.tolist())) == len(places)
    assert [int(permute(places[i : i + 1], n, KEYS)[0]) for i in range(len(places))] == together.tolist()


def test_the_argument_is_left_alone() -> None:
    places = np.arange(100)
    permute(places, 100, KEYS)
    assert np.array_equal(places, np.arange(100))


def test_every_order_of_a_few_windows_comes_up() -> None:
    rng = np.random.default_rng(0)
    orders = {tuple(permute(np.arange(3), 3, rng.integers(2**63, size=4).astype(np.uint64))) for _ in range(300)}
    assert len(orders) == 6


# --- epochs


@pytest.mark.parametrize(("n", "block"), [(1000, 10), (1003, 10), (1009, 10), (65, 8), (4097, 64), (333, 1)])
def test_an_epoch_shows_every_window_once_and_none_overlap(counting: Callable[..., Tokens], n: int, block: int) -> None:
    tokens = counting(n)
    for number in range(3):
        starts = np.sort(epoch(tokens, block, number))
        assert (np.diff(starts) == block).all()
        assert starts[0] >= 0 and starts[-1] + block + 1 <= n
        assert n - len(starts) * block < 2 * block  # less than two windows are left out


def test_epochs_are_cut_at_new_places(counting: Callable[..., Tokens]) -> None:
    tokens = counting(507)
    phases = {int(epoch(tokens, 10, number).min()) for number in range(300)}
    assert phases == set(range(17))  # as many as there are tokens to spare: none is never seen


def test_epochs_have_new_orders(counting: Callable[..., Tokens]) -> None:
    tokens = counting(500)
    orders = {tuple(epoch(tokens, 10, number) // 10) for number in range(20)}
    assert len(orders) == 20


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_order_looks_shuffled(counting: Callable[..., Tokens], number: int) -> None:
    """Correlations of a random order of 1,000, with places and with what came before, are about 0.03."""
    order = epoch(counting(10_050), 10, number) // 10
    ranks = np.arange(len(order))
    assert abs(np.corrcoef(order, ranks)[0, 1]) < 0.12
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.12
    ascents = (np.diff(order) > 0).mean()
    assert 0.45 < ascents < 0.55
    assert len(set(np.diff(order).tolist())) > len(order) / 2  # no constant stride


def test_the_first_windows_of_many_seeds_come_from_everywhere(counting: Callable[..., Tokens]) -> None:
    tokens = counting(1000)
    firsts = [int(WindowSampler(tokens, 10, 1, seed).offsets(0)[0]) // 100 for seed in range(500)]
    counts = np.bincount(firsts, minlength=10)
    assert counts.min() > 25 and counts.max() < 80  # 50 expected


def test_a_batch_may_cross_the_border_of_epochs(counting: Callable[..., Tokens]) -> None:
    tokens = counting(105)  # 9 windows an epoch
    one, seven = WindowSampler(tokens, 10, 1, seed=3), WindowSampler(tokens, 10, 7, seed=3)
    expected = np.concatenate([one.offsets(step) for step in range(63)])
    assert one.windows_per_epoch == 9
    assert np.array_equal(np.concatenate([seven.offsets(step) for step in range(9)]), expected)


def test_a_batch_may_be_larger_than_several_epochs(counting: Callable[..., Tokens]) -> None:
    batches = WindowSampler(counting(41), 10, 32, seed=3)
    starts = batches.offsets(0)
    assert batches.windows_per_epoch == 3 and starts.shape == (32,)
    for first in range(0, 30, 3):
        assert np.diff(np.sort(starts[first : first + 3])).tolist() == [10, 10]


def test_epochs_are_counted(counting: Callable[..., Tokens]) -> None:
    batches = WindowSampler(counting(105), 10, 6, seed=3)
    assert batches.epochs(0) == 0 and batches.epochs(3) == 2.0
    assert batches(0).tokens.numel() == 60


# --- purity


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**9))
@settings(max_examples=50)
def test_a_batch_depends_on_seed_and_step_alone(seed: int, step: int) -> None:
    tokens = Tokens(Path("unread"), "uint16", 0, 5000)
    asked_before = WindowSampler(tokens, 16, 32, seed)
    for other in range(3):
        asked_before.offsets(other)
    first, again = asked_before.offsets(step), WindowSampler(tokens, 16, 32, seed).offsets(step)
    assert np.array_equal(first, again)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_micro_batches_together_are_the_batch_of_one_step(counting: Callable[..., Tokens], k: int) -> None:
    whole = WindowSampler(counting(2000), 16, 5 * k, seed=1)
    for step in (0, 1, 7, 40):
        batch = whole(step)
        pieces = batch.split(k)
        assert [len(piece) for piece in pieces] == [5] * k
        assert torch.equal(torch.cat([piece.tokens for piece in pieces]), batch.tokens)
        assert torch.equal(torch.cat([piece.targets for piece in pieces]), batch.targets)


def test_a_part_of_a_batch_has_its_weights_and_extras() -> None:
    tokens, weights = torch.arange(12).view(4, 3), torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1]])
    batch = Batch(tokens, tokens + 1, weights, {"reward": torch.arange(4)})
    assert batch.weight == 6 and Batch(tokens, tokens + 1).weight == 12
    first, second = batch.split(2)
    assert (first.weight, second.weight) == (3, 3)
    assert torch.equal(second.weights, weights[2:]) and second.extras["reward"].tolist() == [2, 3]


def test_other_seeds_give_other_batches(counting: Callable[..., Tokens]) -> None:
    tokens = counting(2000)
    assert len({tuple(WindowSampler(tokens, 16, 8, seed).offsets(0)) for seed in range(50)}) == 50


def test_the_order_of_a_seed_stays_from_version_to_version(counting: Callable[..., Tokens]) -> None:
    """A run that is continued by a newer version must go on where it was."""
    assert WindowSampler(counting(1000), 10, 6, seed=1337).offsets(0).tolist() == [121, 101, 881, 161, 811, 761]
    assert WindowSampler(counting(1000), 10, 6, seed=1337).offsets(100).tolist() == [110, 180, 580, 510, 250, 650]


# --- a corpus of 10¹² tokens, which nothing here could hold

HUGE = Tokens(Path("unread"), "uint32", 0, 10**12 + 7)


def place_of(image: int, n: int, keys: npt.NDArray[np.uint64]) -> int:
    """What `permute` moves to `image`: its network backwards, until the value is below n."""
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    mask, value = np.uint64((1 << int(half)) - 1), np.array([image], np.uint64)
    while True:
        left, right = value >> half, value & mask
        for key in keys[::-1]:
            left, right = right ^ (mix(left ^ key) & mask), left
        value = (left << half) | right
        if value[0] < n:
            return int(value[0])


@given(st.integers(1, 2**50), st.data())
@settings(max_examples=50, deadline=None)
def test_every_window_of_a_huge_corpus_has_its_place_in_an_epoch(n: int, data: st.DataObject) -> None:
    image = data.draw(st.integers(0, n - 1))
    assert permute(np.array([place_of(image, n, KEYS)]), n, KEYS)[0] == image


@given(st.integers(0, 10**8), st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_windows_of_a_huge_corpus_are_in_it_and_apart(step: int, seed: int) -> None:
    batches = WindowSampler(HUGE, 256, 512, seed)
    assert batches.windows_per_epoch == 10**12 // 256 - 1 == 3_906_249_999
    starts = np.sort(batches.offsets(step))
    assert starts[0] >= 0 and starts[-1] + 257 <= len(HUGE)
    if step * 512 // batches.windows_per_epoch == (step * 512 + 511) // batches.windows_per_epoch:
        assert (np.diff(starts) >= 256).all() and not (np.diff(starts) % 256).any()


def test_epochs_of_a_huge_corpus_begin_where_they_should() -> None:
    batches = WindowSampler(HUGE, 256, 512, 3)
    border, rest = divmod(batches.windows_per_epoch, 512)
    assert batches.epochs(border) < 1 < batches.epochs(border + 1)
    phases = batches.offsets(border) % 256
    assert len(set(phases[:rest])) == len(set(phases[rest:])) == 1 and phases[0] != phases[-1]


# --- what a batch holds


def test_targets_are_the_tokens_that_follow(tmp_path: Path) -> None:
    text = "To be, or not to be, that is the question.\n" * 20
    (tmp_path / "a.txt").write_text(text, newline="")
    corpus = Corpus.open(tmp_path / "a.txt")
    batches = WindowSampler(corpus.train, 12, 4, seed=5)
    batch = batches(2)
    inputs, targets = batch.tokens, batch.targets
    assert inputs.shape == targets.shape == (4, 12)
    assert inputs.dtype == targets.dtype == torch.int64 and inputs.device.type == "cpu"
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    for row, start in enumerate(batches.offsets(2)):
        assert corpus.tokenizer.decode(inputs[row].tolist()) == text[start : start + 12]
        assert corpus.tokenizer.decode(targets[row].tolist()) == text[start + 1 : start + 13]


def test_batches_come_from_the_training_part_alone(counting: Callable[..., Tokens]) -> None:
    whole = counting(300)
    part = Tokens(whole.path, whole.dtype, 100, 203)
    sampler = WindowSampler(part, 10, 4, seed=0)
    seen = torch.cat([torch.cat([x.tokens, x.targets]).flatten() for x in map(sampler, range(150))])
    assert (int(seen.min()), int(seen.max())) == (100, 202)


@pytest.mark.parametrize(("n", "block"), [(2, 1), (11, 10), (12, 10), (19, 10), (20, 10), (21, 10), (30, 10)])
def test_the_shortest_texts_work(counting: Callable[..., Tokens], n: int, block: int) -> None:
    batches = WindowSampler(counting(n), block, 6, seed=0)
    for step in range(50):
        part = batches(step).split(2)[1]
        inputs, targets = part.tokens, part.targets
        assert inputs.shape == (3, block) and torch.equal(targets, inputs + 1) and int(targets.max()) < n


@pytest.mark.parametrize("n", [0, 1, 10])
def test_a_text_too_short_for_one_window_is_refused(counting: Callable[..., Tokens], n: int) -> None:
    with pytest.raises(ValueError, match=rf"{n} token\(s\) are fewer than a window of 10 and one more"):
        WindowSampler(counting(n), 10, 1, seed=0)
