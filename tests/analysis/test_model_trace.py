"""What is shown of a model's inside is what it computes: by hand, and as transformers tells it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from groundling.analysis.model_trace import ModelTrace, neighbours
from groundling.config import ModelSettings
from groundling.model.gpt import GPT
from references import gpt2_of, qwen3_of

GPT2 = ModelSettings(block_size=16, n_layer=3, n_head=4, n_embd=32)
MODERN = replace(GPT2, norm="rmsnorm", position="rope", mlp="swiglu", n_kv_head=2, rope_theta=1000.0)
V = 65
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def model_of(settings: ModelSettings) -> GPT:
    torch.manual_seed(0)
    model = GPT(settings, V)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)  # far from uniform attention
    return model


@pytest.mark.parametrize("settings", [GPT2, MODERN], ids=["gpt2", "modern"])
def test_it_is_what_transformers_tells(settings: ModelSettings) -> None:
    model = model_of(settings).eval()
    reference = gpt2_of(model) if settings is GPT2 else qwen3_of(model)
    reference.set_attn_implementation("eager")
    with torch.inference_mode():
        told = reference(torch.tensor([TOKENS]), output_attentions=True, output_hidden_states=True)
    reading = ModelTrace(model, TOKENS)
    for layer in range(settings.n_layer):
        torch.testing.assert_close(reading.attention(layer), told.attentions[layer][0], atol=1e-5, rtol=1e-4)
        # Their last hidden state is normalized, and not the stream: the logits say the same of it.
        torch.testing.assert_close(reading.streams[layer], told.hidden_states[layer][0], atol=1e-4, rtol=1e-4)
    assert len(reading.streams) == settings.n_layer + 1
    last = reading.probabilities(settings.n_layer)
    torch.testing.assert_close(last, told.logits[0].softmax(-1), atol=1e-5, rtol=1e-4)


def test_attention_by_hand() -> None:
    """One head of size 2 whose query and key are the normalized stream itself."""
    model = GPT(ModelSettings(block_size=4, n_layer=1, n_head=1, n_embd=2), 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        block = model.blocks[0]
        block.ln_1.weight.fill_(1.0)
        block.attn.c_attn.weight[:2] = torch.eye(2)
        block.attn.c_attn.weight[2:4] = torch.eye(2)
        model.wte.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [5.0, -5.0]]))
    # Normalized, tokens 0 and 2 are (1, -1) and token 1 is (-1, 1): scores are 2 and -2, divided by √2.
    like, unlike = math.exp(math.sqrt(2)), math.exp(-math.sqrt(2))
    expected = torch.tensor(
        [[1, 0, 0], [unlike / (like + unlike), like / (like + unlike), 0],
         [like / (2 * like + unlike), unlike / (2 * like + unlike), like / (2 * like + unlike)]]
    )  # fmt: skip
    torch.testing.assert_close(ModelTrace(model, [0, 1, 2]).attention(0)[0], expected, atol=1e-4, rtol=1e-4)


def test_the_lens_reads_the_stream_as_it_stands() -> None:
    model = model_of(GPT2).eval()
    reading = ModelTrace(model, TOKENS)
    with torch.inference_mode():
        embedded = model.add_positions(model.wte(torch.tensor([TOKENS])))
        one_block = model.unembed(model.blocks[0](embedded))[0].softmax(-1)
        torch.testing.assert_close(reading.probabilities(0), model.unembed(embedded)[0].softmax(-1))
    torch.testing.assert_close(reading.probabilities(1), one_block)


def test_neighbours_point_the_same_way() -> None:
    model = GPT(ModelSettings(block_size=4, n_layer=1, n_head=1, n_embd=2), 4)
    with torch.no_grad():
        model.wte.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0], [9.0, 9.0], [-2.0, 0.0]]))
    found = neighbours(model, 0)
    assert [token for token, _ in found] == [2, 1, 3]
    assert [cosine for _, cosine in found] == pytest.approx([math.sqrt(0.5), 0.0, -1.0])
    assert len(neighbours(model, 0, 2)) == 2


def test_dropout_and_gradients_stay_out_of_it() -> None:
    model = model_of(replace(GPT2, dropout=0.5)).train()
    assert torch.equal(ModelTrace(model, TOKENS).attention(1), ModelTrace(model, TOKENS).attention(1))


@pytest.mark.parametrize(("tokens", "sentence"), [([], "at least one token"), ([1] * 17, "context of 16")])
def test_what_cannot_be_read_is_refused(tokens: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ModelTrace(model_of(GPT2), tokens)
