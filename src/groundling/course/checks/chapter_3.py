"""The checks of chapter 3."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from groundling.course.checks import expect, expect_close


def attend(answer: Callable[..., Any]) -> None:
    import torch

    from groundling.model.attention import causal_attention

    B, T, nh, hd = 2, 6, 3, 4
    q, k, v = torch.randn(3, B, T, nh * hd, generator=torch.Generator().manual_seed(1)).unbind(0)

    def of(q: Any, k: Any, v: Any, n_head: int = nh) -> torch.Tensor:
        return _tensor(answer(q.clone(), k.clone(), v.clone(), n_head), v.shape, "attend")

    y = of(q, k, v)
    expect(y.isfinite().all(), "There are NaNs: a position that may see nothing, not even itself, has no weights.")
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[:, -1] += 10  # one whose shares, if it is seen, cannot be missed
    later = of(changed[0], changed[1], changed[2])
    same = of(q, k, torch.ones_like(v))
    ones = bool(torch.allclose(same, torch.ones_like(same), atol=1e-4))
    first = bool(torch.allclose(y[:, 0], v[:, 0], atol=1e-5))
    values = of(q, k, changed[2])  # the last token's value alone
    expect(
        ones or not torch.allclose(y[:, :-1], values[:, :-1], atol=1e-5),
        "The weights of a position do not sum to 1: mask the scores with -inf before the softmax, not the weights "
        "after it.",
    )
    heads = of(q, k, v, 1)
    expect(
        _same_heads(of, q, k, v, hd),
        "The heads are mixed up: a head is hd neighbouring channels of every position. (B, T, C) becomes "
        "(B, T, nh, hd) by view, and then (B, nh, T, hd) by transpose(1, 2), and back the same way.",
    )
    expect(
        torch.allclose(y[:, :-1], later[:, :-1], atol=1e-5),
        "A change of the last token changed the outputs before it: they see the future. Scores of later positions must "
        "be -inf before the softmax. Any other number, such as 0 or -1, still gives them some weight.",
    )
    expect(first, "The first position can only see itself, so its output should be v[:, 0].")
    expect(ones, "The weights of a position should sum to 1: softmax over the keys, the last axis of the scores.")
    expect(
        not torch.allclose(y, _scaled(q, k, v, nh, 1.0), atol=1e-5),
        "The scores are not scaled: divide them by √hd.",
    )
    expect(
        not torch.allclose(y, _scaled(q, k, v, nh, (nh * hd) ** 0.5), atol=1e-5),
        "You divided by √C. Each head's dot product has only hd = C / n_head terms: divide by √hd.",
    )
    split = [x.view(B, T, nh, hd).transpose(1, 2) for x in (q, k, v)]
    ours = causal_attention(split[0], split[1], split[2]).transpose(1, 2).flatten(2)
    expect_close("Attention with three heads", y, ours)
    split = [x[:, None] for x in (q, k, v)]
    expect_close("Attention with one head", heads, causal_attention(split[0], split[1], split[2])[:, 0])


def _same_heads(of: Callable[..., Any], q: Any, k: Any, v: Any, hd: int) -> bool:
    """Whether a change of the values of the second head's channels changes these channels alone."""
    changed = v.clone()
    changed[..., hd : 2 * hd] += 1
    different = ((of(q, k, changed) - of(q, k, v)).abs() > 1e-5).flatten(0, 1).any(0).tolist()
    return different == [hd <= channel < 2 * hd for channel in range(v.size(-1))]


def _scaled(q: Any, k: Any, v: Any, nh: int, divisor: float) -> Any:
    """Right but for the scale."""
    import torch.nn.functional as F

    q, k, v = (x.unflatten(-1, (nh, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / divisor).transpose(1, 2).flatten(2)


def layer_norm(answer: Callable[..., Any]) -> None:
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, generator=generator) * 5 + 2
    one, zero = torch.ones(8), torch.zeros(8)
    plain = _tensor(answer(x.clone(), one, zero), x.shape, "layer_norm")
    means, variances = plain.mean(-1), plain.var(-1, unbiased=False)
    over_all = torch.allclose(plain, (x - x.mean()) / x.std(unbiased=False), atol=1e-3)
    over_time = torch.allclose(plain.mean(1), torch.zeros(2, 8), atol=1e-3)
    expect(
        not over_all and not over_time,
        "Normalize each position by itself: mean and variance over the last axis, with keepdim=True. Otherwise a "
        "position would learn something of those after it.",
    )
    expect(means.abs().max() < 1e-3, "The mean of a position is not 0: subtract it. (Without, it is an RMSNorm.)")
    expect(
        (variances - 7 / 8).abs().max() > 1e-3,
        "The variance is 7/8 instead of 1: PyTorch's var() divides by n - 1. Divide by n: unbiased=False.",
    )
    expect((variances - 1).abs().max() < 1e-3, f"The variance of a position should be 1, not {variances[0, 0]:.3g}.")
    small = x * 1e-3
    expect_close(
        "For a position with a tiny variance, the result",
        _tensor(answer(small.clone(), one, zero), x.shape, "layer_norm"),
        F.layer_norm(small, (8,)),
        1e-3,
        "eps belongs inside the root, added to the variance.",
    )
    weight, bias = torch.rand(8, generator=generator) + 0.5, torch.randn(8, generator=generator)
    scaled = _tensor(answer(x.clone(), weight, bias), x.shape, "layer_norm")
    expect(not torch.allclose(scaled, plain, atol=1e-3), "weight and bias are not used.")
    expect_close("layer_norm", scaled, F.layer_norm(x, (8,), weight, bias))


def count_parameters(answer: Callable[..., Any]) -> None:
    from groundling.config import ModelSettings
    from groundling.model.describe import weight_shapes

    n_layer, C, V, N = 3, 10, 11, 5
    config = ModelSettings(block_size=N, n_layer=n_layer, n_head=1, n_embd=C)
    wanted = sum(prod(shape) for shape in weight_shapes(config, V).values())
    found = answer(n_layer, C, V, N)
    expect(isinstance(found, int), "count_parameters should return an int.")
    usual = {
        V * C: "The output head is counted on its own, but it is the token embedding once more: count V · C once.",
        -N * C: "The position embedding is missing: block_size · C.",
        -2 * C: "The norm after the last block is missing: 2 · C.",
        -2 * C * n_layer: "A block has two norms, not one.",
        -C: "A LayerNorm has a weight and a bias: 2 · C, the last one too.",
        -(2 * n_layer + 1) * C: "A LayerNorm has a weight and a bias: 2 · C.",
        -n_layer * (3 * C + C + 4 * C + C): "The linear layers have biases, too: one number for each output.",
        -n_layer * C * C: "Attention has a fourth matrix, which mixes the heads' results: C · C.",
        -n_layer * (C * C + C): "Attention has a fourth linear layer, which mixes the heads' results: C · C + C.",
        -n_layer * (4 * C * C + C): "The MLP has two linear layers: C to 4 C, and 4 C back to C.",
    }
    wrong = f"For 3 layers of width 10 with 11 tokens and context 5 there are {wanted} parameters, not {found}."
    expect(found == wanted, f"{wrong} {usual.get(found - wanted, '')}".strip())
    expect(answer(6, 384, 65, 256) == 10_770_816, "6 layers of width 384 have 10,770,816 parameters.")
    expect(answer(12, 768, 50_257, 1024) == 124_439_808, "GPT-2 small has 124,439,808 parameters.")


def _tensor(value: Any, shape: Any, name: str) -> Any:
    import torch

    expect(value is not None, f"{name} returns nothing. Is the `return` missing?")
    expect(isinstance(value, torch.Tensor), f"{name} should return a tensor, not {type(value).__name__}.")
    expect(value.shape == shape, f"{name} should return the shape {tuple(shape)}, not {tuple(value.shape)}.")
    return value.detach()
