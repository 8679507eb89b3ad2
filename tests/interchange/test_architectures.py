"""Each architecture, with random weights that transformers made: imported, run by every decoder, and exported again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small import TINY_GPT2, logits_of, saved

import groundling
from groundling.config import ModelSettings
from groundling.data.tokenizers.base import ByteTokenizer
from groundling.interchange import gguf, onnx
from groundling.interchange.parity import check_parity, parity_inputs
from groundling.model.gpt import GPT, rope_frequencies

LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", TINY_GPT2 | {"layer_norm_epsilon": 1e-6}),
    "llama": ("Llama", LLAMA),
    "smollm2": ("Llama", LLAMA | {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1,
                                  "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama3": ("Llama", LLAMA | {"rope_parameters": LLAMA_3, "head_dim": 18}),
    "llama-biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR}),
    "mistral": ("Mistral", LLAMA | {"sliding_window": None, "head_dim": 6}),
    "qwen2": ("Qwen2", LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 10, "attention_bias": True, "rms_norm_eps": 1e-5}),
}  # fmt: skip
each = pytest.mark.parametrize("name", ARCHITECTURES)


@each
def test_it_computes_what_transformers_computes_and_is_exported_equal(name: str, tmp_path: Path) -> None:
    kind, settings = ARCHITECTURES[name]
    theirs = saved(tmp_path / "theirs", ByteTokenizer(), kind, **settings)
    run = groundling.import_model(tmp_path / "theirs", name="mine")
    tokens = torch.randint(257, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
        ids = theirs.generate(torch.tensor([list(b"Once")]), max_new_tokens=20, do_sample=False, pad_token_id=0)
    text = run.tokenizer.decode(ids[0, 4:].tolist())
    assert run.generate("Once", max_new_tokens=20, temperature=0) == text  # with the fast decoder
    made = groundling.export(run, to="huggingface", out=tmp_path / "export")
    assert made["proof"]["largest_difference"] < 1e-5
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("theirs", "export"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)
    old, new = (json.loads((tmp_path / each / "config.json").read_text()) for each in ("theirs", "export"))
    ours = {"attn_pdrop", "n_inner", "bos_token_id", "eos_token_id"}
    assert {key: old[key] for key in (old.keys() & new.keys()) - ours} == {
        key: new[key] for key in (old.keys() & new.keys()) - ours
    }


@each
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_every_decoder_agrees_with_the_model(name: str, precision: Any) -> None:
    numba_decoder = pytest.importorskip("groundling.acceleration.numba_decoder")
    from groundling.acceleration.precision import with_precision

    model = random_model(name)
    tokens, cache = list(range(40, 56)), model.new_cache()
    decoder = numba_decoder.NumbaDecoder(model, precision)
    found = torch.from_numpy(decoder.read(tokens, [0] * 16, list(range(16)), cache))
    with torch.inference_mode():
        expected = with_precision(model, precision)(torch.tensor([tokens]))[0]
    tolerance = 1e-4 if precision == "float32" else 0.1 * float(expected.std())  # PyTorch rounds its inputs too
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def random_model(name: str) -> GPT:
    llama: dict[str, Any] = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "qk_norm": False, "n_kv_head": 2}
    settings = {
        "gpt2": {"norm_eps": 1e-3},
        "llama": llama | {"head_size": 10},
        "smollm2": llama | {"tie_head": False, "n_kv_head": 1},
        "llama3": llama | {"rope_scaling": "llama3:8:1:4:32", "rope_theta": 500.0},
        "llama-biases": llama | {"attention_bias": "on", "mlp_bias": "on", "rope_scaling": "linear:2.5"},
        "mistral": llama | {"n_kv_head": 4},
        "qwen2": llama | {"attention_bias": "qkv", "norm_eps": 1e-5},
        "qwen3": llama | {"qk_norm": True, "norm_eps": 1e-5},
    }[name]
    torch.manual_seed(0)
    model = GPT(ModelSettings(block_size=48, n_layer=2, n_head=4, n_embd=32, **settings), 257).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@each
@pytest.mark.parametrize("ends", [True, False])
def test_its_gguf_computes_the_same(name: str, ends: bool, tmp_path: Path) -> None:
    """In llama.cpp, if that is installed. Without an end-of-text token, one is added."""
    tokenizer, model = ByteTokenizer(), random_model(name)
    if not ends:
        tokenizer.end_of_text_id = None  # type: ignore[assignment]
    gguf.write(tmp_path, model, tokenizer, None)
    engine = gguf.engine(tmp_path, model, tokenizer)
    check_parity(model, tokenizer, engine, parity_inputs(model, tokenizer, None), rounded=False)


def test_what_llama_cpp_lacks_is_said(tmp_path: Path) -> None:
    model = random_model("qwen3")
    model.config = ModelSettings(**vars(model.config) | {"attention_bias": "on"})
    with pytest.raises(ValueError, match=r"has no Qwen3 with biases in attention\. Use --to huggingface"):
        gguf.write(tmp_path, model, ByteTokenizer(), None)
    model.config = ModelSettings(**vars(model.config) | {"attention_bias": "off", "rope_scaling": "llama3:8:1:4:32"})
    with pytest.raises(ValueError, match="as Llama 3 only in a Llama"):
        gguf.write(tmp_path, model, ByteTokenizer(), None)


@pytest.mark.slow
@each
def test_its_onnx_computes_the_same(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    onnx.write(tmp_path, model, ByteTokenizer(), None)
    inputs = parity_inputs(model, ByteTokenizer(), None)
    report = check_parity(model, ByteTokenizer(), onnx.OnnxRuntime(tmp_path), inputs, rounded=False)
    assert report.largest_difference < 1e-4


def test_llama_3_keeps_high_frequencies_and_divides_low_ones() -> None:
    plain = ModelSettings(n_embd=64, n_head=1, position="rope", rope_theta=500_000.0)
    scaled = ModelSettings(
        n_embd=64, n_head=1, position="rope", rope_theta=500_000.0, rope_scaling="llama3:32:1:4:8192"
    )
    ratios = rope_frequencies(plain) / rope_frequencies(scaled)
    turns = 8192 * rope_frequencies(plain) / (2 * torch.pi)
    assert bool((ratios[turns >= 4] == 1).all())
    torch.testing.assert_close(ratios[turns <= 1], torch.full_like(ratios[turns <= 1], 32.0))
    assert len(ratios[(ratios > 1) & (ratios < 31)]) == 3


@pytest.mark.parametrize("scaling", ["linear", "linear:0", "llama3:8:4:1:32", "yarn:4", "none:1", "linear:x"])
def test_a_scaling_that_is_none_is_refused(scaling: str) -> None:
    with pytest.raises(ValueError, match=r"--rope-scaling .* use none, linear:FACTOR, or llama3:"):
        ModelSettings(rope_scaling=scaling)


def test_a_sliding_window_limits_the_context(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs", ByteTokenizer(), "Mistral", **LLAMA | {"sliding_window": 24})
    with pytest.raises(ValueError, match="--block-size 32 is too large: this model's sliding attention window has 24"):
        groundling.import_model(tmp_path / "theirs", block_size=32)
    notices: list[str] = []
    run = groundling.import_model(tmp_path / "theirs", notice=notices.append)
    assert notices == ["The context is 24 tokens, the model's sliding attention window. groundling has no windows."]
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_the_first_layers_of_a_qwen_have_no_window(tmp_path: Path) -> None:
    settings = LLAMA | {"sliding_window": 24, "use_sliding_window": True}
    theirs = saved(tmp_path / "theirs", ByteTokenizer(), "Qwen2", **settings | {"max_window_layers": 2})
    for layer_types in (["full_attention"] * 2, None):  # before transformers 4.53, configs had none
        config = json.loads((tmp_path / "theirs" / "config.json").read_text()) | {"layer_types": layer_types}
        (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
        run = groundling.import_model(tmp_path / "theirs", name=f"mine-{layer_types is None}")
        tokens = torch.arange(64)[None]
        with torch.no_grad():
            torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config | {"max_window_layers": 1}))
    assert groundling.import_model(tmp_path / "theirs", name="windows").config.model.block_size == 24


@pytest.mark.parametrize("written_by", ["transformers 4", "torch.compile", "original Llama"])
def test_other_spellings_of_names_and_settings_are_read(written_by: str, tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs", ByteTokenizer(), "Llama", **LLAMA | {"rope_parameters": LLAMA_3})
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    if written_by == "transformers 4":
        rope = config.pop("rope_parameters")
        config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": "float32"}
    elif written_by == "torch.compile":
        tensors = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
    else:
        tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.arange(4.0) for i in range(2)}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs" / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "theirs" / "weights.safetensors", {"format": "pt"})  # any name, if it is the only one
    run = groundling.import_model(tmp_path / "theirs" / "weights.safetensors", name="mine")
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    """transformers decides by the weights, too."""
    saved(tmp_path / "theirs", ByteTokenizer(), "Llama", **LLAMA)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    notices: list[str] = []
    run = groundling.import_model(tmp_path / "theirs", name="mine", notice=notices.append)
    assert notices == ["The output head has its own weights, although tie_word_embeddings is true: not tied."]
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    assert groundling.import_model(tmp_path / "theirs", name="tied").config.model.tie_head
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"Weights are missing: lm_head\.weight"):
        groundling.import_model(tmp_path / "theirs", name="headless")
    save_file({n: t.to(torch.float8_e4m3fn) for n, t in tensors.items()}, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(ValueError, match=r"are float8_e4m3fn\. groundling imports float32, bfloat16 or float16"):
        groundling.import_model(tmp_path / "theirs", name="small")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_keep_their_values(dtype: torch.dtype, tmp_path: Path) -> None:
    """As a base model saves them: without the head, which is tied, and without the prefix."""
    theirs = saved(tmp_path / "theirs", ByteTokenizer(), "Llama", **LLAMA | {"tie_word_embeddings": True}).to(dtype)
    theirs.model.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["architectures"] == ["LlamaModel"]
    assert "embed_tokens.weight" in load_file(tmp_path / "theirs" / "model.safetensors")
    run = groundling.import_model(tmp_path / "theirs", name="mine")
    tokens, reopened = torch.arange(32)[None], type(theirs).from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(run, tokens), reopened(tokens).logits, atol=1e-5, rtol=0)
