"""Dropout: the right share, the right mean, decided by the seed alone."""

from __future__ import annotations

import pytest
import torch

from groundling.model.dropout import Dropout


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


def test_compiled_forward_and_backward_use_one_mask() -> None:
    from groundling.machine import has_compiler

    if not has_compiler():
        pytest.skip("needs a C++ compiler")
    drop, x = Dropout(0.3).train(), torch.randn(20, 20, requires_grad=True)
    compiled = torch.compile(lambda x: drop(x.sin()) * 2)
    torch.manual_seed(5)
    y = compiled(x)
    y.sum().backward()
    torch.manual_seed(5)
    torch.testing.assert_close(y, drop(x.sin()) * 2)
    assert torch.equal(x.grad == 0, y == 0)
