"""The model is GPT-2: the same numbers as the reference, no look into the future, sound at birth."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from groundling.config import PRESETS, Config, ModelSettings
from groundling.model.gpt import GPT
from references import gpt2_of, qwen3_of

TINY = ModelSettings(block_size=16, n_layer=3, n_head=4, n_embd=32)
MODERN = replace(TINY, norm="rmsnorm", position="rope", mlp="swiglu")
LLAMA = replace(MODERN, qk_norm=False, attention_bias="qkv", mlp_bias="on", rope_scaling="llama3:8:1:4:16", n_kv_head=2)
V = 65


def model_of(settings: ModelSettings = TINY, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(settings, V).eval()


def tokens_of(batch: int, time: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(V, (batch, time), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("settings", [TINY, PRESETS["workshop"].model], ids=["tiny", "workshop"])
def test_logits_are_those_of_transformers(settings: ModelSettings, tie_head: bool) -> None:
    model = model_of(replace(settings, tie_head=tie_head))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, which are born as zeros and ones
            parameter.add_(torch.randn_like(parameter) * 0.05)
        tokens = tokens_of(2, settings.block_size)
        torch.testing.assert_close(model(tokens), gpt2_of(model)(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", [1, 7, 15])
def test_no_position_sees_the_future(position: int) -> None:
    model, tokens = model_of(), tokens_of(2, 16)
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % V
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position:], after[:, position:])


def test_an_untrained_model_knows_nothing() -> None:
    model, tokens = model_of(PRESETS["workshop"].model), tokens_of(4, 257)
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(V)) < 0.1


def test_a_batch_can_be_memorised() -> None:
    model, tokens = model_of().train(), tokens_of(4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_initialisation_is_gpt2s() -> None:
    model = model_of(PRESETS["workshop"].model)
    block = model.h[0]
    assert float(model.wte.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(block.attn.c_attn.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    for projection in (block.attn.c_proj, block.mlp.c_proj):
        assert float(projection.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(12), rel=0.05)
        assert not projection.bias.detach().any()
    assert bool((block.ln_1.weight == 1).all())


def test_the_workshops_model_has_10_77_million_parameters() -> None:
    settings = PRESETS["workshop"].model
    tied, untied = GPT(settings, V), GPT(replace(settings, tie_head=False), V)
    assert sum(p.numel() for p in tied.parameters()) == 10_770_816
    assert sum(p.numel() for p in untied.parameters()) == 10_770_816 + V * 384


@pytest.mark.parametrize("tie_head", [True, False])
def test_the_parameter_table_adds_up(tie_head: bool) -> None:
    model = model_of(replace(TINY, tie_head=tie_head))
    assert sum(count for _, count in model.parameter_table()) == sum(p.numel() for p in model.parameters())


def test_dropout_acts_in_training_only() -> None:
    model, tokens = model_of(replace(TINY, dropout=0.5)), tokens_of(1, 16)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (torch.zeros(16, dtype=torch.int64), r"shape \(batch, time\)"),
        (torch.zeros(1, 16), r"torch.float32 \(1, 16\)"),
        (torch.zeros(1, 17, dtype=torch.int64), "17 tokens do not fit into this model's context of 16"),
    ],
)
def test_wrong_input_is_refused(tokens: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        model_of()(tokens)


@pytest.mark.parametrize(
    "settings", [TINY, MODERN, replace(MODERN, n_kv_head=2), LLAMA], ids=["tiny", "modern", "shared", "llama"]
)
@pytest.mark.parametrize("pieces", [[16], [5, 11], [1] * 16, [7, 1, 1, 4, 3]])
def test_the_cache_changes_nothing(settings: ModelSettings, pieces: list[int]) -> None:
    model, tokens = model_of(settings), tokens_of(3, 16)
    cache = model.new_cache(batch_size=3)
    with torch.no_grad():
        parts = [model(part, cache) for part in tokens.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-5, rtol=1e-5)
    assert cache.lengths.tolist() == [16] * 3


def test_a_full_cache_refuses_more() -> None:
    model = model_of()
    cache = model.new_cache()
    with torch.no_grad():
        model(tokens_of(1, 16), cache)
        with pytest.raises(ValueError, match="17 tokens do not fit"):
            model(tokens_of(1, 1), cache)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_what_the_cpu_computes() -> None:
    model, tokens = model_of(), tokens_of(2, 16)
    with torch.no_grad():
        here, there = model(tokens), model.cuda()(tokens.cuda()).cpu()
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)


# The modern family.


@pytest.mark.parametrize("n_kv_head", [0, 2, 1])
@pytest.mark.parametrize("tie_head", [True, False])
def test_modern_logits_are_those_of_qwen3(tie_head: bool, n_kv_head: int) -> None:
    model = model_of(replace(MODERN, tie_head=tie_head, n_kv_head=n_kv_head, rope_theta=1000.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        tokens = tokens_of(2, 16)
        torch.testing.assert_close(model(tokens), qwen3_of(model)(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", [1, 7, 15])
def test_no_position_of_the_modern_family_sees_the_future(position: int) -> None:
    model, tokens = model_of(MODERN), tokens_of(2, 16)
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % V
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :position], after[:, :position])


@pytest.mark.parametrize("preset", ["laptop", "nano"])
def test_runs_from_before_these_choices_are_the_models_that_they_were(preset: str) -> None:
    values = Config.build("", preset).to_dict()
    for name in ("norm_eps", "qk_norm", "attention_bias", "mlp_bias", "rope_scaling"):
        del values["model"][name]
    assert Config.from_dict(values).model == PRESETS[preset].model


def test_biases_are_where_the_settings_say() -> None:
    def biased(**settings: Any) -> set[str]:
        names = (name for name, _ in model_of(replace(MODERN, **settings)).named_parameters())
        return {name.removeprefix("h.0.") for name in names if name.startswith("h.0.") and name.endswith("bias")}

    assert biased() == set()
    assert biased(attention_bias="qkv") == {"attn.c_attn.bias"}
    assert biased(attention_bias="on") == {"attn.c_attn.bias", "attn.c_proj.bias"}
    assert biased(mlp_bias="on") == {"mlp.c_fc.bias", "mlp.c_proj.bias"}


def test_the_modern_family_has_no_biases_and_no_position_table() -> None:
    model = model_of(MODERN)
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias") or name.startswith("wpe")]
    assert sum(count for _, count in model.parameter_table()) == sum(p.numel() for p in model.parameters())
