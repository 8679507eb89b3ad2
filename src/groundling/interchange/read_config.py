"""config.json of a Hugging Face model -> our settings.

Every entry that changes what the model computes becomes a setting, or is an error that names it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from groundling.data.progress import Notice
from groundling.interchange.huggingface import ARCHITECTURES, ROPE_SCALINGS
from groundling.interchange.weight_names import Family

_MOST_LAYERS = 1000  # that a model may have; ModelSettings refuses more
_LONGEST = 2048  # default limit of the context: generating with Qwen3's 40,960 tokens would need gigabytes

# What transformers takes if config.json has no such entry.
_LLAMA = {
    "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False,
    "num_key_value_heads": None, "head_dim": None, "rope_theta": 10_000.0,
}  # fmt: skip
_WINDOW = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
_YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "attention_factor": None, "mscale": None,
         "mscale_all_dim": None}  # fmt: skip
_CONTEXT = dict.fromkeys(ARCHITECTURES, "max_position_embeddings") | {"gpt2": "n_positions"}
_DEFAULTS: dict[Family, dict[str, Any]] = {
    "gpt2": {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "n_inner": None},
    "qwen3": _LLAMA | {"head_dim": 128, **_WINDOW},
    "qwen2": _LLAMA | _WINDOW,
    "llama": _LLAMA | {"max_position_embeddings": 2048},
    "mistral": _LLAMA | {"sliding_window": 4096},
}

# Entries that our model supports with these values only. The first is taken if config.json has no such entry, or null.
_FIXED: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1,), "logit_scale": (1,), "logits_scaling": (1,), "embedding_multiplier": (1,),
    "residual_multiplier": (1,), "attention_multiplier": (None,), "query_pre_attn_scalar": (None,),
    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,), "clip_qkv": (None,),
    "no_rope_layers": (None,), "num_local_experts": (0, 1), "num_experts": (0, 1), "is_encoder_decoder": (False,),
    "add_cross_attention": (False,), "alibi": (False,),
}  # fmt: skip
_FIXED_GPT2 = _FIXED | {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}  # fmt: skip
_FIXED_OTHERS = _FIXED | {"hidden_act": ("silu", "swish")}


def read_settings(
    theirs: dict[str, Any], source: Path, block_size: int | None, notice: Notice
) -> tuple[Family, dict[str, Any], int]:
    """The family, the model's settings under our names, and the size of its vocabulary.

    Raises ValueError that names an entry of `theirs`, the JSON of config.json, that groundling does not support.
    KeyError, TypeError, AttributeError or ArithmeticError mean that one is missing or of another type.
    """
    family = _family(theirs, source)
    if quantized := theirs.get("quantization_config") or theirs.get("quantization"):  # the second is MLX's
        raise ValueError(
            f"{source}: the weights are quantized ({quantized.get('quant_method', 'unknown method')}). groundling "
            "imports weights in float32, bfloat16 or float16. Import the model that they were made from."
        )
    theirs = _DEFAULTS[family] | theirs
    for name, allowed in (_FIXED_GPT2 if family == "gpt2" else _FIXED_OTHERS).items():
        value = theirs.get(name)
        if value is not None and value not in allowed:
            raise _unsupported(source, name, value, allowed[0])
    dropped = theirs.get("attn_pdrop" if family == "gpt2" else "attention_dropout") or 0
    if dropped:
        notice(f"Ignored its dropout of {dropped} on attention weights. groundling has no such dropout.")
    model = _gpt2(theirs) if family == "gpt2" else _llama(theirs, source, family)
    longest = int(_number(theirs, _CONTEXT[family]))
    model["block_size"] = block_size or min(longest, _LONGEST)
    if model["block_size"] > longest:
        raise ValueError(f"--block-size {block_size} is too large: this model's context has {longest:,} tokens.")
    return family, model, int(_number(theirs, "vocab_size"))


def _number(entries: dict[str, Any], name: str) -> float:
    """Raises TypeError if an entry is no number."""
    value = entries[name]
    if type(value) not in (int, float):
        raise TypeError(f"{name} is {json.dumps(value):.80}, not a number")
    return float(value) if type(value) is float else value


def _family(theirs: dict[str, Any], source: Path) -> Family:
    kinds = theirs.get("architectures") or [theirs.get("model_type")]
    for family, name in ARCHITECTURES.items():
        # Files of a model without its output head are named so: LlamaModel. A tied head needs no weights of its own.
        if {name, family, name.replace("ForCausalLM", "Model").replace("LMHeadModel", "Model")}.intersection(kinds):
            return family
    *others, last = ARCHITECTURES.values()
    raise ValueError(
        f"{source} contains a {', '.join(map(str, kinds)):.200}. Only {', '.join(others)} and {last} can be imported."
    )


def _gpt2(theirs: dict[str, Any]) -> dict[str, Any]:
    return {
        "n_layer": theirs["n_layer"], "n_head": theirs["n_head"],
        "n_embd": theirs["n_embd"], "mlp_size": theirs["n_inner"] or 0, "norm_eps": _epsilon(theirs, 1e-5),
        "dropout": theirs["resid_pdrop"], "tie_head": theirs["tie_word_embeddings"],
    }  # fmt: skip


def _llama(theirs: dict[str, Any], source: Path, family: Family) -> dict[str, Any]:
    heads, attention_bias = theirs["num_attention_heads"], "on" if theirs["attention_bias"] else "off"
    return {
        "n_layer": theirs["num_hidden_layers"],
        "n_head": heads, "n_kv_head": theirs["num_key_value_heads"] or heads,
        "n_embd": theirs["hidden_size"], "head_size": theirs["head_dim"] or theirs["hidden_size"] // heads,
        "mlp_size": theirs["intermediate_size"], "norm": "rmsnorm", "position": "rope", "mlp": "swiglu",
        "norm_eps": _epsilon(theirs, 1e-6), "qk_norm": family == "qwen3",
        "attention_bias": "qkv" if family == "qwen2" else attention_bias if family != "mistral" else "off",
        "mlp_bias": "on" if theirs["mlp_bias"] and family == "llama" else "off",
        "dropout": 0.0, "tie_head": theirs["tie_word_embeddings"], **_rope(theirs, source),
        **_windows(theirs, source, family),
    }  # fmt: skip


def _epsilon(theirs: dict[str, Any], usual: float) -> float:
    """The epsilon, or 0, our default, if it is the usual one."""
    value = float(_number(theirs, "layer_norm_epsilon" if "layer_norm_epsilon" in theirs else "rms_norm_eps"))
    return 0.0 if value == usual else value


def _rope(theirs: dict[str, Any], source: Path) -> dict[str, Any]:
    """transformers 4 has `rope_theta` and `rope_scaling`. transformers 5 has `rope_parameters` with both."""
    rope = {"rope_theta": theirs["rope_theta"]}
    rope |= (theirs.get("rope_parameters") or {}) | (theirs.get("rope_scaling") or {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    names = ROPE_SCALINGS | {"default": ()}
    if not isinstance(kind, str) or kind not in names or any(isinstance(value, dict) for value in rope.values()):
        raise _unsupported(source, "rope_scaling", kind, "default", "linear", "yarn", "llama3")
    for name, usual in _YARN.items() if kind == "yarn" else ():
        if rope.get(name) not in (None, usual):
            raise _unsupported(source, name, rope[name], usual)
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise _unsupported(source, "partial_rotary_factor", rope["partial_rotary_factor"], 1)
    rope.setdefault("original_max_position_embeddings", theirs["max_position_embeddings"])
    numbers = [f"{_number(rope, name):.17g}" for name in names[kind]]
    return {
        "rope_theta": float(_number(rope, "rope_theta")),
        "rope_scaling": ":".join([kind, *numbers]) if numbers else "none",
    }


def _windows(theirs: dict[str, Any], source: Path, family: Family) -> dict[str, Any]:
    """Which layers see how many tokens."""
    layers, kinds = int(_number(theirs, "num_hidden_layers")), theirs.get("layer_types")
    if unknown := set(kinds or ()) - {"full_attention", "sliding_attention"}:
        raise _unsupported(source, "layer_types", sorted(map(str, unknown)), "full_attention", "sliding_attention")
    if kinds and len(kinds) != layers:
        raise _unsupported(source, "num_hidden_layers", layers, len(kinds))  # as many as `layer_types`
    has_windows = family in ("mistral", "qwen2", "qwen3") and theirs.get("use_sliding_window", True)
    if not has_windows or layers > _MOST_LAYERS:
        return {}
    if kinds:
        slides = [kind == "sliding_attention" for kind in kinds]
    else:  # a Qwen's first layers see all tokens
        slides = [family == "mistral" or layer >= theirs["max_window_layers"] for layer in range(layers)]
    if not theirs["sliding_window"] or not any(slides):
        return {}
    pattern = "".join("S" if each else "F" for each in slides)
    shortest = next(n for n in range(1, len(pattern) + 1) if (pattern[:n] * len(pattern)).startswith(pattern))
    return {"sliding_window": int(_number(theirs, "sliding_window")), "sliding_layers": pattern[:shortest]}


def _unsupported(source: Path, name: str, value: Any, *allowed: Any) -> ValueError:
    choices = " or ".join(map(json.dumps, allowed))
    return ValueError(f"{source}: groundling does not support {name} {json.dumps(value):.80}, only {choices}.")
