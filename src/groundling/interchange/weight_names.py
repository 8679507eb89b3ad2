"""Our tensors under the names that others give them, and back.

Where we keep several matrices stacked in one (query, key and value; gate and value of SwiGLU), some others keep them
apart: a tensor of ours then has several names, in the order of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from groundling.config import ModelSettings
from groundling.model.gpt import GPT

Family = Literal["gpt2", "modern"]


@dataclass(frozen=True)
class Names:
    """What somebody calls our modules: those `outside` of the blocks, and those `inside` of block number {}."""

    outside: Mapping[str, str]
    block: str
    inside: Mapping[str, tuple[str, ...]]

    def of(self, own: str) -> tuple[str, ...]:
        """`h.3.attn.c_attn.weight` -> their names for it, more than one where they keep its parts apart."""
        module, _, kind = own.rpartition(".")
        if not module.startswith("h."):
            return (f"{self.outside[module]}.{kind}",)
        _, number, module = module.split(".", 2)
        return tuple(f"{self.block.format(number)}.{name}.{kind}" for name in self.inside[module])


def family_of(model: ModelSettings) -> Family:
    """Raises ValueError for a mixture, which other engines do not know."""
    parts = (model.norm, model.position, model.mlp)
    if parts == ("layernorm", "learned", "gelu") and model.n_kv_head in (0, model.n_head) and not model.head_size:
        return "gpt2"
    if parts == ("rmsnorm", "rope", "swiglu"):
        return "modern"
    raise ValueError(
        "No other engine knows this mixture of --norm, --position, --mlp, --n-kv-head and --head-size: only models "
        "that are all GPT-2's (layernorm, learned, gelu) or all Qwen3's (rmsnorm, rope, swiglu) can be exported."
    )


def to_external(model: GPT, names: Names) -> dict[str, torch.Tensor]:
    """All tensors of `model`, under their names and apart where they keep them apart."""
    return {
        name: part.contiguous()
        for own, tensor in model.state_dict().items()
        for name, part in zip(names.of(own), _parts(tensor, model.config, len(names.of(own))), strict=True)
    }


def from_external(model: GPT, names: Names, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill `model` from their tensors. Raises ValueError, with their names, for one that is missing, left over or of
    another shape."""
    own = model.state_dict()
    theirs = [name for mine in own for name in names.of(mine)]
    for problem, found in (
        ("are missing", set(theirs) - tensors.keys()),
        ("are not known", tensors.keys() - set(theirs)),
    ):
        if found:
            raise ValueError(f"Weights {problem}: {', '.join(sorted(found)[:3])} ({len(found)} in all).")
    for mine, place in own.items():
        parts = [tensors[name] for name in names.of(mine)]
        shapes = [tuple(part.shape) for part in _parts(place, model.config, len(parts))]
        for name, part, shape in zip(names.of(mine), parts, shapes, strict=True):
            if tuple(part.shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(part.shape)} where its settings ask for {shape}.")
        place.copy_(torch.cat([part.float() for part in parts]))


def _parts(tensor: torch.Tensor, model: ModelSettings, n: int) -> tuple[torch.Tensor, ...]:
    """The rows of `tensor` as the one, two (of SwiGLU) or three (of attention) that it is stacked from."""
    heads = [model.n_head * model.head_dim, *[model.kv_heads * model.head_dim] * 2]
    return tensor.split(heads) if n == 3 else tensor.chunk(n)
