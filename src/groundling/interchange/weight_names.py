"""The names of our tensors in other formats, in both directions.

We stack some matrices in one tensor (query, key and value; gate and up of SwiGLU). Other formats may store them
separately. Such a tensor has several names, in the order of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from groundling.config import ModelSettings
from groundling.model.gpt import GPT

Family = Literal["gpt2", "qwen3"]


@dataclass(frozen=True)
class Names:
    """A format's names for our modules: `outside` the blocks, and `inside` block number {}."""

    outside: Mapping[str, str]
    block: str
    inside: Mapping[str, tuple[str, ...]]

    def of(self, own: str) -> tuple[str, ...]:
        """`h.3.attn.c_attn.weight` -> the format's names for it. Several if it stores the parts separately."""
        module, _, kind = own.rpartition(".")
        if not module.startswith("h."):
            return (f"{self.outside[module]}.{kind}",)
        _, number, module = module.split(".", 2)
        return tuple(f"{self.block.format(number)}.{name}.{kind}" for name in self.inside[module])


def family_of(model: ModelSettings) -> Family:
    """Raises ValueError if the model is neither a GPT-2 nor a Qwen3. Other engines know no mixture."""
    parts = (model.norm, model.position, model.mlp)
    if parts == ("layernorm", "learned", "gelu") and model.n_kv_head in (0, model.n_head) and not model.head_size:
        return "gpt2"
    if parts == ("rmsnorm", "rope", "swiglu"):
        return "qwen3"
    raise ValueError(
        "No other engine supports this mixture of --norm, --position, --mlp, --n-kv-head and --head-size. Only models "
        "that are entirely GPT-2 (layernorm, learned, gelu) or Qwen3 (rmsnorm, rope, swiglu) can be exported."
    )


def to_external(model: GPT, names: Names) -> dict[str, torch.Tensor]:
    """All tensors of `model` under the format's names, split where the format stores parts separately."""
    return {
        name: part.contiguous()
        for own, tensor in model.state_dict().items()
        for name, part in zip(names.of(own), _parts(tensor, model.config, len(names.of(own))), strict=True)
    }


def from_external(model: GPT, names: Names, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill `model` from a format's tensors. Raises ValueError, with names, if some are missing, unknown or of another
    shape."""
    own = model.state_dict()
    expected = {name for mine in own for name in names.of(mine)}
    for problem, wrong in (("missing", expected - tensors.keys()), ("unknown", tensors.keys() - expected)):
        if wrong:
            raise ValueError(f"Weights are {problem}: {', '.join(sorted(wrong)[:3])} ({len(wrong)} in total).")
    for mine, target in own.items():
        for name, place in zip(names.of(mine), _parts(target, model.config, len(names.of(mine))), strict=True):
            found, required = tuple(tensors[name].shape), tuple(place.shape)
            if found != required:
                raise ValueError(f"{name} has shape {found}, but the settings require {required}.")
            place.copy_(tensors[name])  # a view of `target`


def _parts(tensor: torch.Tensor, model: ModelSettings, n: int) -> tuple[torch.Tensor, ...]:
    """The rows of `tensor` as its one, two (SwiGLU) or three (attention) stacked matrices."""
    heads = [model.n_head * model.head_dim, *[model.kv_heads * model.head_dim] * 2]
    return tensor.split(heads) if n == 3 else tensor.chunk(n)
