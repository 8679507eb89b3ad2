"""causal_attention(): every way of computing it is the same function, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from groundling.model import attention
from groundling.model.attention import causal_attention


def _inputs(T: int, heads: int, kv_heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(T)
    return [
        torch.randn(2, h, T, 16, generator=generator).to(dtype).requires_grad_() for h in (heads, kv_heads, kv_heads)
    ]


def _with_gradients(function, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    y = function(*inputs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), inputs)]


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 200, 256, 600])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_chunks_are_exact(T: int, kv_heads: int) -> None:
    inputs = _inputs(T, 4, kv_heads, torch.float64)
    for ours, plain in zip(
        _with_gradients(attention._in_chunks, inputs), _with_gradients(_reference, inputs), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_chunks_pass_the_numerical_check_of_gradients() -> None:
    inputs = [x[:1, :2, :, :3].detach().requires_grad_() for x in _inputs(70, 2, 2, torch.float64)]
    assert torch.autograd.gradcheck(attention._in_chunks, inputs)


@pytest.mark.parametrize("T", [5, 256])
def test_bfloat16_on_a_cpu_stays_near_float32(T: int) -> None:
    low, high = _inputs(T, 4, 2, torch.bfloat16), _inputs(T, 4, 2, torch.float32)
    for ours, plain in zip(_with_gradients(causal_attention, low), _with_gradients(_reference, high), strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), plain, rtol=0.05, atol=0.05)


def test_no_position_sees_its_future() -> None:
    q, k, v = (x.detach() for x in _inputs(256, 2, 2, torch.bfloat16))
    before = causal_attention(q, k, v)[:, :, :100]
    k[:, :, 100:], v[:, :, 100:] = 7, -7
    assert torch.equal(causal_attention(q, k, v)[:, :, :100], before)


def test_a_context_too_long_for_its_weights_takes_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("all weights would be written out")

    monkeypatch.setattr(attention, "_in_chunks", refuse)
    monkeypatch.setattr(attention, "_MAX_CHUNKED", 64)
    q, k, v = (x.detach() for x in _inputs(65, 2, 2, torch.bfloat16))
    torch.testing.assert_close(causal_attention(q, k, v), _reference(q, k, v))


@pytest.mark.parametrize("window", [1, 7, 63, 64, 100, 199])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_windows_are_exact(window: int, kv_heads: int) -> None:
    inputs = _inputs(200, 4, kv_heads, torch.float64)
    position = torch.arange(200)
    distances = position[:, None] - position
    mask = (distances >= 0) & (distances < window)

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    ours = _with_gradients(lambda q, k, v: causal_attention(q, k, v, window=window), inputs)
    for own, plain in zip(ours, _with_gradients(masked, inputs), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-10, atol=1e-10)


def test_a_window_as_long_as_the_text_changes_nothing() -> None:
    q, k, v = (x.detach() for x in _inputs(64, 2, 1, torch.float32))
    assert torch.equal(causal_attention(q, k, v, window=64), causal_attention(q, k, v))


def test_the_memory_of_windows_grows_with_the_text_and_not_with_its_square() -> None:
    def kept(T: int) -> int:
        sizes = list[int]()

        def keep(x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.nbytes)
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            causal_attention(*_inputs(T, 2, 2, torch.float32), window=64)
        return sum(sizes)

    assert kept(4096) < 5 * kept(1024)
