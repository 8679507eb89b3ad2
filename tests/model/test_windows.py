"""Sliding windows: the model is the same function whether it reads a text at once, in steps, in a batch or packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from groundling.analysis.model_trace import ModelTrace
from groundling.config import ModelSettings, Sampling
from groundling.inference.engine import generate
from groundling.inference.ngram_drafter import NgramDrafter
from groundling.inference.rollouts import sample_rollouts
from groundling.model import gpt
from groundling.model.describe import flops_per_token
from groundling.model.gpt import GPT
from groundling.model.packing import PackedRows

TOKENS = torch.randint(30, (2, 64), generator=torch.Generator().manual_seed(1))


def windowed(**settings: Any) -> GPT:
    """A model that makes much of the tokens in its windows, and of those outside."""
    values: dict[str, Any] = {
        "norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "n_kv_head": 1, "block_size": 64, "n_layer": 3,
        "n_head": 2, "n_embd": 16, "sliding_window": 5, "sliding_layers": "SFS",
    }  # fmt: skip
    torch.manual_seed(0)
    model = GPT(ModelSettings(**values | settings), 30).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@torch.inference_mode()
def test_each_layer_sees_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    model, position = windowed(), torch.arange(64)
    ours = model(TOKENS)
    distances, layers = position[:, None] - position, iter([5, 64, 5])

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> torch.Tensor:
        mask = (distances >= 0) & (distances < next(layers))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    monkeypatch.setattr(gpt, "causal_attention", plain)
    torch.testing.assert_close(ours, model(TOKENS))


@torch.inference_mode()
def test_a_cache_gives_the_same() -> None:
    """In pieces of several sizes, and for rows at different positions."""
    model = windowed()
    whole, cache = model(TOKENS), model.new_cache(2)
    pieces = [model(part, cache) for part in TOKENS.split([20, 1, 30, 1, 12], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    cache = model.new_cache(2)
    model(TOKENS[:1, :20], cache[:1])
    model(TOKENS[1:, :9], cache[1:])
    next_ones = torch.stack([TOKENS[0, 20:23], TOKENS[1, 9:12]])
    torch.testing.assert_close(model(next_ones, cache), torch.stack([whole[0, 20:23], whole[1, 9:12]]))


@torch.inference_mode()
def test_packed_documents_are_the_same_as_alone() -> None:
    model = windowed()
    lengths = [23, 31, 10]
    documents = torch.arange(3).repeat_interleave(torch.tensor(lengths))[None]
    packed = model(TOKENS[:1], PackedRows(documents))
    for part, alone in zip(packed.split(lengths, dim=1), TOKENS[:1].split(lengths, dim=1), strict=True):
        torch.testing.assert_close(part, model(alone))


def test_generated_texts_are_the_same_with_and_without_fast_decoder_and_drafts() -> None:
    numba_decoder = pytest.importorskip("groundling.acceleration.numba_decoder")
    model, prompt = windowed(), TOKENS[0, :20].tolist()
    decoder = numba_decoder.NumbaDecoder(model, "float32")
    expected = list(prompt)
    with torch.inference_mode():
        while len(expected) < 60:
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    for options in ({}, {"decoder": decoder}, {"decoder": decoder, "drafter": NgramDrafter()}):
        assert list(generate(model, prompt, 40, Sampling(temperature=0), **options)) == expected[20:]


def test_rollouts_see_the_same_windows() -> None:
    model, prompts = windowed(), [TOKENS[0, :20].tolist(), TOKENS[1, :7].tolist()]
    for prompt, reply in zip(prompts, sample_rollouts(model, prompts, [1, 2], 30, (), temperature=0), strict=True):
        assert list(reply.tokens) == list(generate(model, prompt, 30, Sampling(temperature=0)))


def test_a_trace_shows_the_window() -> None:
    weights = [ModelTrace(windowed(), TOKENS[0, :20].tolist()).attention(layer) for layer in (0, 1)]
    seen = [np.count_nonzero(each[0].numpy(), axis=1).tolist() for each in weights]
    assert seen == [[min(n, 5) for n in range(1, 21)], list(range(1, 21))]


def test_the_arithmetic_of_a_window_is_counted() -> None:
    full, short = windowed(sliding_window=0, sliding_layers="S").config, windowed(sliding_layers="S").config
    keys = sum(min(n, 5) for n in range(1, 65)) / 64
    saved = flops_per_token(full, 30) - flops_per_token(short, 30)
    assert saved == pytest.approx(12 * 3 * 16 * (32 - keys), rel=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sliding_layers": "SX"}, "--sliding-layers 'SX': use a pattern of S and F, such as SSSF"),
        ({"sliding_layers": "SF"}, "--sliding-layers SF does nothing without --sliding-window"),
        ({"sliding_window": -1}, "--sliding-window must be at least 0, not -1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSettings(**settings)


def test_a_pattern_is_repeated_over_the_layers() -> None:
    assert ModelSettings(n_layer=5, sliding_window=8, sliding_layers="SSF").windows == [8, 8, 0, 8, 8]
