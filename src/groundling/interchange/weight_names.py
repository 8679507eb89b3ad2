"""The names of our tensors in other formats, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from groundling.config import ModelSettings
from groundling.model.gpt import GPT

Family = Literal["gpt2", "qwen3", "qwen2", "llama", "mistral"]
Names = Mapping[str, str]
"""A format's names for our modules, where they differ: for those inside a block without its prefix, which is `h`.

We stack some matrices in one tensor (query, key and value; gate and up of SwiGLU). If a format stores them separately,
their names are separated by spaces, in the order of their rows.
"""


def family_of(model: ModelSettings, imported: str | None = None) -> Family:
    """What the model is in other engines. A Mistral is a Llama, unless its layers have windows or its settings were
    `imported` from a Mistral.

    Raises ValueError if it is a mixture that no other engine knows.
    """
    parts, biases, slides = (model.norm, model.position, model.mlp), model.biases, any(model.windows)
    if parts == ("layernorm", "learned", "gelu") and not slides:
        if model.n_kv_head in (0, model.n_head) and not model.head_size and all(biases):
            return "gpt2"
    elif parts == ("rmsnorm", "rope", "swiglu"):
        if model.qk_norm and biases in ((False, False, False), (True, True, False)):
            return "qwen3"
        if not model.qk_norm and biases == (True, False, False):
            return "qwen2"
        if not model.qk_norm and not any(biases) and (all(model.windows) or imported == "MistralForCausalLM"):
            return "mistral"
        if not model.qk_norm and biases[0] == biases[1] and not slides:
            return "llama"
    if slides:
        raise ValueError(
            "No other engine supports this model with --sliding-window. With windows in all layers, a Mistral can be "
            "exported (rmsnorm, rope, swiglu, no qk-norm, no biases), and with windows in any layers a Qwen3 or Qwen2."
        )
    raise ValueError(
        "No other engine supports this mixture of --norm, --position, --mlp, --n-kv-head, --head-size, --qk-norm, "
        "--attention-bias and --mlp-bias. Only models that are entirely GPT-2 (layernorm, learned, gelu), or Qwen3, "
        "Qwen2 or Llama (rmsnorm, rope, swiglu) can be exported."
    )


def to_external(model: GPT, names: Names) -> dict[str, torch.Tensor]:
    """All tensors of `model` under the format's names, split where the format stores parts separately. They share the
    model's memory."""
    tensors: dict[str, torch.Tensor] = {}
    for own, tensor in model.state_dict().items():
        module, _, kind = own.rpartition(".")  # h.3.attn.c_attn, weight
        theirs = external_modules(module, names)
        parts = tensor.split(model.get_submodule(module).sizes) if len(theirs) > 1 else [tensor]
        tensors |= {f"{name}.{kind}": part for name, part in zip(theirs, parts, strict=True)}
    return tensors


def external_modules(module: str, names: Names) -> list[str]:
    """The format's names of our `module`, several if the format stores its parts separately."""
    prefix, inside = "", module
    if module.startswith("h."):
        _, number, inside = module.split(".", 2)
        prefix = names["h"].format(number) + "."
    return [prefix + name for name in names.get(inside, inside).split()]


def from_external(model: GPT, names: Names, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill `model` from a format's tensors. Raises ValueError, with names, if some are missing, unknown or of another
    shape."""
    expected = to_external(model, names)
    for problem, wrong in (
        ("missing", expected.keys() - tensors.keys()),
        ("unknown", tensors.keys() - expected.keys()),
    ):
        if wrong:
            raise ValueError(f"Weights are {problem}: {', '.join(sorted(wrong)[:3])} ({len(wrong)} in total).")
    for name, tensor in expected.items():
        found, required = tuple(tensors[name].shape), tuple(tensor.shape)
        if found != required:
            raise ValueError(f"{name} has shape {found}, but the settings require {required}.")
        tensor.copy_(tensors[name])
