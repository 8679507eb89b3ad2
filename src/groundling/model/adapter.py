"""Adapters: a few numbers are trained instead of all weights.

LoRA (Hu et al., 2021) adds a product of two small matrices to each weight matrix W of the blocks: W + s·B·A, where A is
(rank, in), B is (out, rank), and s = alpha / rank. B starts at zero, so the model starts as it was. rsLoRA
(Kalajdzievski, 2023) has s = alpha / √rank. DoRA (Liu et al., 2024) also learns the length of each row of the sum.

The model itself does not change: the adapter computes weights, and `forward` runs the model on those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn as nn

from groundling.model.gpt import GPT, StackedLinear

AdapterKind = Literal["lora", "rslora", "dora"]

_PARTS = {1: ("",), 2: (".gate", ".value"), 3: (".q", ".k", ".v")}
"""The names of the matrices that a layer stacks, by their number."""


@dataclass(frozen=True)
class AdapterSpec:
    """What kind of adapter to train, and the number of new vocabulary rows (the last ones) to train as a whole."""

    rank: int
    alpha: float = 0.0  # 0: twice the rank
    kind: AdapterKind = "lora"
    new_rows: int = 0

    @property
    def scale(self) -> float:
        """What B·A is multiplied by."""
        return (self.alpha or 2.0 * self.rank) / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)


class LowRank(nn.Module):
    """The change of one matrix `base`, (out, in), which is kept. `forward` gives the changed matrix."""

    def __init__(self, base: torch.Tensor, spec: AdapterSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale = base, spec.scale
        rows, columns = base.shape
        first = nn.init.kaiming_uniform_(torch.empty(spec.rank, columns), a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(first.to(base.device))
        self.lora_B = nn.Parameter(base.new_zeros(rows, spec.rank))
        self.magnitude = nn.Parameter(_row_norms(base)) if spec.kind == "dora" else None

    def forward(self) -> torch.Tensor:
        weight = self.base + self.scale * (self.lora_B @ self.lora_A)
        if self.magnitude is None:
            return weight
        return with_row_norms(weight, self.magnitude)


def with_row_norms(matrix: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """`matrix` with rows of these lengths. The lengths that it has get no gradient (DoRA, section 4.3)."""
    return (norms / _row_norms(matrix.detach()))[:, None] * matrix


def _row_norms(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(matrix, dim=1).clamp(min=torch.finfo(matrix.dtype).tiny)  # a row may be zero


class Adapter(nn.Module):
    """An adapter of all linear layers in the blocks of `model`, whose own parameters no longer require gradients.

    Matrices that a layer stacks (queries, keys, values; gate and value) have factors of their own. Parameters are named
    after the model's, such as `h.0.attn.c_attn.q.lora_A`. The random ones depend only on `seed`.
    """

    def __init__(self, model: GPT, spec: AdapterSpec, seed: int) -> None:
        super().__init__()
        self.spec, self.vocab_size = spec, model.vocab_size
        model.requires_grad_(False)
        self._call = partial(torch.func.functional_call, model)
        self._weights = dict(model.named_parameters())  # in a dict, so that they are no parameters of the adapter
        self.layers: dict[str, list[LowRank]] = {}
        self.rows: dict[str, nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed)
        for name, module in model.h.named_modules(prefix="h"):
            if isinstance(module, nn.Linear):
                sizes = module.sizes if isinstance(module, StackedLinear) else (module.out_features,)
                parts = [LowRank(base, spec, generator) for base in module.weight.detach().clone().split(sizes)]
                for suffix, part in zip(_PARTS[len(parts)], parts, strict=True):
                    _attach(self, name + suffix, part)
                self.layers[name] = parts
        for name in ("wte", "lm_head") if spec.new_rows else ():
            if f"{name}.weight" in self._weights:
                table = nn.Module()
                table.rows = nn.Parameter(self._weights[f"{name}.weight"].detach()[-spec.new_rows :].clone())
                _attach(self, name, table)
                self.rows[name] = table.rows

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's changed weights by name, differentiable, in float32 also under autocast: bfloat16 would lose
        small changes."""
        device = next(iter(self._weights.values())).device.type
        with torch.autocast(device, enabled=False):
            changed = {f"{name}.weight": torch.cat([part() for part in parts]) for name, parts in self.layers.items()}
            for name, rows in self.rows.items():
                changed[f"{name}.weight"] = torch.cat([self._weights[f"{name}.weight"][: -len(rows)], rows])
            return changed

    def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """`GPT.forward` with the changed weights."""
        return self._call(self.weights(), arguments, options)

    @torch.no_grad()
    def merge(self) -> None:
        """Write the changed weights into the model, which then computes the same, to the bit."""
        for name, weight in self.weights().items():
            self._weights[name].copy_(weight)


def _attach(root: nn.Module, path: str, leaf: nn.Module) -> None:
    """Make `leaf` the submodule of `root` at a dotted path."""
    *folders, name = path.split(".")
    for folder in folders:
        if folder not in dict(root.named_children()):
            root.add_module(folder, nn.Module())
        root = root.get_submodule(folder)
    root.add_module(name, leaf)
