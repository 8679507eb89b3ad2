"""A model made ready for inference: generating a token is mostly the reading of all weights.

`float32` computes what the model itself does, from weights laid out for it. `bfloat16` computes what training in
bfloat16 computed: products of rounded weights and inputs, added up in float32, between normalizations and a residual
stream in float32. `int8` rounds each row of a weight matrix to 255 steps of its own size (as Q8_0 does for each 32
numbers).
"""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F

from groundling.model.gpt import GPT

Precision = Literal["float32", "bfloat16", "int8"]


def with_precision(model: GPT, precision: Precision) -> GPT:
    """A copy of `model` for inference whose matrices are of that precision; `model` itself if nothing is to be gained.

    Embeddings, norms and the cache stay in float32. Raises ValueError for another name.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"--precision {precision!r}: choose one of {', '.join(get_args(Precision))}.")
    if precision == "float32" and not (_can_pack(model.device) and _is_large(model.blocks[0].mlp.c_fc)):
        return model
    if precision == "int8" and model.device.type != "cpu":
        raise ValueError("--precision int8 is for CPUs; use bfloat16 on this device.")
    smaller = copy.deepcopy(model).eval().requires_grad_(False)
    if smaller.lm_head is None:
        head = nn.Linear(model.config.n_embd, model.vocab_size, bias=False, device=model.device)
        head.weight = smaller.wte.weight
        smaller.lm_head = head
    for module in list(smaller.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, _linear(child, precision))
    return smaller


def _linear(linear: nn.Linear, precision: Precision) -> nn.Module:
    if precision == "int8":
        return Int8Linear(linear)
    if precision == "float32" and not _is_large(linear):
        return linear
    return PackedLinear(linear, torch.float32 if precision == "float32" else torch.bfloat16)


def _can_pack(device: torch.device) -> bool:
    return device.type == "cpu" and torch.backends.mkldnn.is_available()


def _is_large(linear: nn.Linear) -> bool:
    """Whether a product takes longer than the call of oneDNN, which is slower to begin than PyTorch's own."""
    return linear.weight.numel() >= 2**17


class PackedLinear(nn.Module):
    """A linear layer with weights in `dtype`; float32 in and out.

    On CPUs they are laid out once as oneDNN wants them: for few tokens, 1.4 times as fast in float32 as with the rows
    as they are, and twice in bfloat16.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = linear.weight.detach().to(dtype)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.packed = _can_pack(self.weight.device) and (
            dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.dtype)
        if self.packed:
            y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
            return y.float()
        return F.linear(x, self.weight, self.bias).float()


def in_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (out, in) as int8 and a scale for each output, (out,), with which they are multiplied."""
    weight = weight.detach().float()
    scales = weight.abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


class Int8Linear(nn.Module):
    """A linear layer with weights in 8 bits and a scale for each output; float32 in and out."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales = in_int8(linear.weight)
        # PyTorch's kernel reads whole vectors, beyond the end of a row that is not so many: zeros change nothing.
        self.missing = -linear.in_features % 32
        self.weight = F.pad(weight, (0, self.missing))
        self.scales = scales.bfloat16()
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2).bfloat16()
        if self.missing:
            rows = F.pad(rows, (0, self.missing))
        y = torch._weight_int8pack_mm(rows, self.weight, self.scales).float().view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias
