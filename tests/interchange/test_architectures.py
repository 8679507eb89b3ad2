"""Each architecture, with random weights that transformers made: imported, run by every decoder, and exported again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small import TINY_GPT2, logits_of, saved

import groundling
from groundling.config import ModelSettings, Sampling
from groundling.data.tokenizers.base import ByteTokenizer
from groundling.inference.engine import generate
from groundling.interchange import gguf, onnx
from groundling.interchange.parity import check_parity, parity_inputs
from groundling.interchange.weight_names import family_of
from groundling.model.gpt import GPT
from groundling.model.rope import rope_frequencies

LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 300.0}
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", TINY_GPT2 | {"layer_norm_epsilon": 1e-6}),
    "llama": ("Llama", LLAMA),
    "smollm2": ("Llama", LLAMA | {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1,
                                  "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama3": ("Llama", LLAMA | {"rope_parameters": LLAMA_3, "head_dim": 18}),
    "llama-biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR}),
    "llama-yarn": ("Llama", LLAMA | {"rope_parameters": YARN, "head_dim": 20}),
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
    decoder = run.variants.decoder("float32")  # the fast one
    assert list(generate(run.model, list(b"Once"), 20, Sampling(temperature=0), decoder=decoder)) == ids[0, 4:].tolist()
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
        "llama-yarn": llama | {"rope_scaling": "yarn:4:16", "rope_theta": 300.0, "head_size": 20},
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


@pytest.mark.slow
def test_its_onnx_has_the_windows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rope: dict[str, Any] = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "n_kv_head": 2}
    windows: dict[str, Any] = {"sliding_window": 7, "sliding_layers": "SF"}
    model = GPT(ModelSettings(block_size=48, n_layer=2, n_head=4, n_embd=32, **rope, **windows), 257).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
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
    with pytest.raises(ValueError, match=r"--rope-scaling .* use none, linear:FACTOR, yarn:FACTOR:CONTEXT, or"):
        ModelSettings(rope_scaling=scaling)


WINDOWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mistral": ("Mistral", {}, "S"),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "FSS"),
    "qwen3": ("Qwen3", {"use_sliding_window": True, "head_dim": 10,
                        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, "SF"),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_sliding_windows_compute_what_transformers_computes_and_are_exported(name: str, tmp_path: Path) -> None:
    """In texts that are longer than the window: read at once, generated, and exported."""
    kind, settings, layers = WINDOWS[name]
    settings = LLAMA | {"num_hidden_layers": 3, "sliding_window": 24} | settings
    theirs = saved(tmp_path / "theirs", ByteTokenizer(), kind, **settings)
    run = groundling.import_model(tmp_path / "theirs", name="mine")
    model = run.config.model
    assert (model.sliding_window, model.sliding_layers, model.block_size) == (24, layers, 64)
    tokens = torch.randint(257, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
        ids = theirs.generate(torch.tensor([list(b"Once")]), max_new_tokens=56, do_sample=False, pad_token_id=0)
    for decoder in (None, run.variants.decoder("float32")):  # PyTorch and the fast one
        written = list(generate(run.model, list(b"Once"), 56, Sampling(temperature=0), decoder=decoder))
        assert written == ids[0, 4:].tolist()
    made = groundling.export(run, to="huggingface", out=tmp_path / "export")
    assert made["proof"]["largest_difference"] < 1e-5
    again = groundling.import_model(tmp_path / "export", name="again")
    assert again.config.model == model
    with pytest.raises(ValueError, match="has no sliding windows in a Llama, Mistral or Qwen"):
        groundling.export(run, to="gguf", out=tmp_path / "gguf")


def test_windows_that_no_other_engine_has_are_refused() -> None:
    with pytest.raises(ValueError, match="No other engine supports this model with --sliding-window"):
        family_of(ModelSettings(sliding_window=8))
    rope = ModelSettings(norm="rmsnorm", position="rope", mlp="swiglu", sliding_window=8, qk_norm=False)
    assert family_of(rope) == "mistral"
    with pytest.raises(ValueError, match="With windows in all layers, a Mistral can be exported"):
        family_of(dataclasses.replace(rope, sliding_layers="SF"))


def test_a_qwen_without_sliding_layers_has_no_window(tmp_path: Path) -> None:
    settings = LLAMA | {"sliding_window": 24, "use_sliding_window": True}
    theirs = saved(tmp_path / "theirs", ByteTokenizer(), "Qwen2", **settings | {"max_window_layers": 2})
    for layer_types in (["full_attention"] * 2, None):  # before transformers 4.53, configs had none
        config = json.loads((tmp_path / "theirs" / "config.json").read_text()) | {"layer_types": layer_types}
        (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
        run = groundling.import_model(tmp_path / "theirs", name=f"mine-{layer_types is None}")
        assert run.config.model.windows == [0, 0]
        tokens = torch.arange(64)[None]
        with torch.no_grad():
            torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config | {"layer_types": ["full_attention"]}))
    with pytest.raises(ValueError, match="num_hidden_layers 2, only 1"):
        groundling.import_model(tmp_path / "theirs", name="more")


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
