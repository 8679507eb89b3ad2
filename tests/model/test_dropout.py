"""Dropout: the right share, the right mean, decided by the seed alone."""

from __future__ import annotations

import pytest
import torch

from groundling.model.dropout import Dropout, random_bytes


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_a_share_p_is_dropped_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    y = Dropout(p).train()(torch.ones(400, 1000))
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=0.003)
    assert float(y.mean()) == pytest.approx(1, abs=0.005)
    assert y.unique().numel() == 2


def test_the_seed_decides_the_mask() -> None:
    drop, x = Dropout(0.3).train(), torch.ones(50, 50)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first)
    assert not torch.equal(first, second)


def test_gradients_pass_where_values_do() -> None:
    x = torch.ones(30, 30, requires_grad=True)
    y = Dropout(0.4).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_nothing_is_dropped_in_evaluation_or_at_p_0() -> None:
    x = torch.randn(10, 10)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


@pytest.mark.usefixtures("compiler")
def test_compiled_forward_and_backward_use_one_mask() -> None:
    drop, x = Dropout(0.3).train(), torch.randn(20, 20, requires_grad=True)
    compiled = torch.compile(lambda x: drop(x.sin()) * 2)
    torch.manual_seed(5)
    y = compiled(x)
    y.sum().backward()
    torch.manual_seed(5)
    torch.testing.assert_close(y, drop(x.sin()) * 2)
    assert torch.equal(x.grad == 0, y == 0)


def test_the_bytes_are_splitmix64() -> None:
    # The first outputs of the reference implementation (Vigna, "splitmix64.c") for the seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    gamma = 0x9E3779B97F4A7C15
    seed = torch.tensor(1234567 + gamma - 2**64)  # ours mixes the counter first and adds after
    found = random_bytes(torch.Size((4, 8)), seed).view(torch.int64).flatten()
    assert [int(x) % 2**64 for x in found] == expected


def test_the_bytes_are_uniform_and_independent() -> None:
    bytes_ = random_bytes(torch.Size((1000, 1003)), torch.tensor(99)).double()
    counts = torch.bincount(bytes_.flatten().long(), minlength=256)
    expected = bytes_.numel() / 256
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert 180 < chi_squared < 345  # 255 degrees of freedom: outside with a chance of about 1 in 10,000
    for shift in (1, 8, 1003):
        pair = torch.stack([bytes_.flatten()[:-shift], bytes_.flatten()[shift:]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.005


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("n", [1, 7, 400, 513, 5000])
def test_compiled_masks_of_any_length_leave_the_memory_whole(n: int) -> None:
    drop, x = Dropout(0.3).train(), torch.randn(n)
    compiled = torch.compile(lambda x: drop(x))
    for seed in range(20):
        torch.manual_seed(seed)
        y = compiled(x)
        torch.manual_seed(seed)
        assert torch.equal(y, drop(x))


@pytest.mark.parametrize("p", [0.0005, 0.999])
def test_the_smallest_and_the_largest_share_drop_some_and_keep_some(p: float) -> None:
    torch.manual_seed(0)
    dropped = Dropout(p).train()(torch.ones(1 << 14))
    share = float((dropped == 0).float().mean())
    assert 0 < share < 1
    assert abs(share - p) < 0.006
    assert dropped.mean() == pytest.approx(1, abs=0.3)
