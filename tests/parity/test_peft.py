"""Adapters against PEFT: ours computed there, theirs read here, and a step of training in both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from groundling import storage
from groundling.config import ModelSettings
from groundling.data.tokenizers.base import CharTokenizer
from groundling.interchange import huggingface, peft
from groundling.interchange.weight_names import external_modules, family_of, to_external
from groundling.model.adapter import Adapter, AdapterKind, AdapterSpec
from groundling.model.gpt import GPT

theirs = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 16}
GPT2 = ModelSettings(**SHAPE, norm="layernorm", position="learned", mlp="gelu", tie_head=True)
QWEN3 = ModelSettings(
    **SHAPE, norm="rmsnorm", position="rope", mlp="swiglu", n_kv_head=2, head_size=6, qk_norm=True, tie_head=True
)
MODELS = {
    "gpt2": GPT2, "gpt2, own head": dataclasses.replace(GPT2, tie_head=False), "qwen3": QWEN3,
    "qwen3, own head": dataclasses.replace(QWEN3, tie_head=False),
}  # fmt: skip
KINDS: tuple[AdapterKind, ...] = ("lora", "rslora", "dora")
TOKENIZER = CharTokenizer([chr(97 + i) for i in range(20)], False)
TOKENS = torch.randint(0, 20, (3, 12), generator=torch.Generator().manual_seed(0))

each_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
each_kind = pytest.mark.parametrize("kind", KINDS)


def stir(module: torch.nn.Module, amount: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))


def exported_model(config: ModelSettings, folder: Path) -> tuple[GPT, Any]:
    """Our model with random weights, and transformers' from its export."""
    torch.manual_seed(0)
    model = GPT(config, 20).eval()
    stir(model)
    folder.mkdir()
    huggingface.write(folder, model, TOKENIZER)
    return model, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def both(config: ModelSettings, spec: AdapterSpec, folder: Path, **options: Any) -> tuple[GPT, Adapter, Any]:
    """Our model with an adapter, and the same two opened by PEFT."""
    model, opened = exported_model(config, folder / peft.BASE)
    adapter = Adapter(model, spec, seed=1)
    stir(adapter)
    peft.write(folder, adapter, family_of(config))
    return model, adapter, theirs.PeftModel.from_pretrained(opened, folder, **options)


def close(ours: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)


@each_model
@each_kind
def test_peft_computes_what_we_compute(kind: AdapterKind, config: ModelSettings, tmp_path: Path) -> None:
    spec = AdapterSpec(2, alpha=3, kind=kind, new_rows=3)
    model, adapter, other = both(config, spec, tmp_path)
    before = model(TOKENS)
    close(adapter(TOKENS), other(TOKENS).logits)
    assert (adapter(TOKENS) - before).abs().max() > 0.1
    family = family_of(config)
    layers = {name: part for name, part in other.named_modules() if hasattr(part, "get_delta_weight")}
    ours = {name: torch.cat([spec.scale * part.lora_B @ part.lora_A for part in adapter.layers[name]])
            for name in adapter.layers}  # fmt: skip
    assert len(layers) == sum(len(external_modules(name, huggingface.NAMES[family])) for name in ours)
    for name, delta in ours.items():
        modules = external_modules(name, huggingface.NAMES[family])
        there = [layers[f"base_model.model.{module}"].get_delta_weight("default") for module in modules]
        close(delta, torch.cat([each.T if family == "gpt2" else each for each in there]))
    adapter.merge()
    merged = other.merge_and_unload()
    close(model(TOKENS), merged(TOKENS).logits)
    weights = huggingface.transposed(to_external(model, huggingface.NAMES[family]), family)
    for name, weight in merged.state_dict().items():
        if name in weights:
            close(weights[name], weight)


@each_model
@each_kind
def test_a_step_of_adamw_is_the_same_in_both(kind: AdapterKind, config: ModelSettings, tmp_path: Path) -> None:
    _, adapter, other = both(config, AdapterSpec(2, kind=kind, new_rows=3), tmp_path, is_trainable=True)
    other.eval()
    start = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    targets = TOKENS.roll(-1, 1).flatten()
    for forward in (adapter, lambda tokens: other(tokens).logits):
        F.cross_entropy(forward(TOKENS).flatten(0, 1), targets).backward()
    there = {name.removeprefix("base_model.model."): p for name, p in other.named_parameters() if p.requires_grad}
    for name, parts in adapter.layers.items():
        modules = external_modules(name, huggingface.NAMES[family_of(config)])
        for i, part in enumerate(parts):
            module = modules[i] if len(modules) > 1 else modules[0]
            a, b = (there[f"{module}.lora_{factor}.default.weight"].grad for factor in "AB")
            if len(modules) < len(parts):  # stacked: the other blocks of B are zero at first
                sizes = [len(each.lora_B) for each in parts]
                a, b = a.split(2)[i], b.split(sizes)[i][:, 2 * i : 2 * i + 2]
            close(part.lora_A.grad, a)
            close(part.lora_B.grad, b)
    if config.tie_head is False:
        close(adapter.rows["lm_head"].grad, next(p for n, p in there.items() if n.startswith("lm_head")).grad)
    if family_of(config) == "qwen3":
        for parameters in (adapter.parameters(), there.values()):
            torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0).step()
        close(adapter(TOKENS), other(TOKENS).logits)
        assert not torch.equal(start["h.0.mlp.c_proj.lora_A"], adapter.state_dict()["h.0.mlp.c_proj.lora_A"])


@each_model
@each_kind
def test_an_adapter_that_peft_saved_is_read(kind: AdapterKind, config: ModelSettings, tmp_path: Path) -> None:
    model, opened = exported_model(config, tmp_path / "model")
    family, tied = family_of(config), config.tie_head
    targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    embedding = "wte" if family == "gpt2" else "embed_tokens"
    options = theirs.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, use_rslora=kind == "rslora", use_dora=kind == "dora",
        rank_pattern={targets[1]: 3}, alpha_pattern={targets[1]: 5}, task_type="CAUSAL_LM",
        trainable_token_indices={embedding: [2, 19]}, modules_to_save=None if tied else ["lm_head"],
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    other = theirs.get_peft_model(opened, options).eval()
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            torch.manual_seed(len(name))
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    other.save_pretrained(tmp_path / "adapter")
    before = model(TOKENS)
    peft.read(tmp_path / "adapter", model, family)
    close(model(TOKENS), other(TOKENS).logits)
    assert (model(TOKENS) - before).abs().max() > 0.1


@pytest.fixture
def saved(tmp_path: Path) -> tuple[GPT, Path]:
    """A Qwen3, and the folder of an adapter of it."""
    model, _, _ = both(QWEN3, AdapterSpec(2, new_rows=2), tmp_path)
    return model, tmp_path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"peft_type": "IA3"}, "does not support peft_type 'IA3'. It reads LoRA, rsLoRA and DoRA. Merge the adapter"),
        ({"init_lora_weights": "pissa"}, "does not support init_lora_weights 'pissa'"),
        ({"alpha_pattern": {"(a+)+$": 3}}, r"its alpha_pattern '\(a\+\)\+\$' is no module's name"),
        ({"trainable_token_indices": {"embed_tokens": [3, 20]}}, "embed_tokens does not fit this model"),
        ({"trainable_token_indices": {"embed_tokens": [3, -1]}}, "its token indices are not whole numbers"),
        ({"lora_alpha": None}, "does not fit this model"),
    ],
)
def test_an_adapter_that_is_not_understood_is_refused(
    changes: dict[str, Any], sentence: str, saved: tuple[GPT, Path]
) -> None:
    model, folder = saved
    config = storage.read_json(folder / peft.CONFIG)
    storage.write_json(folder / peft.CONFIG, config | changes)
    with pytest.raises(ValueError, match=sentence):
        peft.read(folder, model, "qwen3")


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("model.layers.0.mlp.up_proj.lora_A.weight", torch.zeros(2, 15), r"up_proj does not fit this model: .*shape"),
        ("model.layers.0.mlp.up_proj.lora_B.weight", torch.zeros(1, 2), r"its shape is \(1, 16\), not \("),
        ("model.layers.2.mlp.up_proj.lora_B.weight", torch.zeros(64, 2), "does not belong to this model.* as --base"),
        ("model.layers.0.mlp.up_proj.lora_embedding_A", torch.zeros(2, 2), "does not belong to this model"),
        ("model.layers.0.mlp.up_proj.lora_B.weight", torch.full((64, 2), torch.nan), "contain NaN or infinity"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    name: str, tensor: torch.Tensor, sentence: str, saved: tuple[GPT, Path]
) -> None:
    model, folder = saved
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file) | {f"base_model.model.{name}": tensor}, file)
    with pytest.raises(ValueError, match=sentence):
        peft.read(folder, model, "qwen3")
