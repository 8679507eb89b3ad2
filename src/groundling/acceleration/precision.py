"""Weights in lower precision: generating a token mostly means reading all weights, so smaller ones are faster.

`float32` computes the same as the model, from weights in a faster memory layout. `bfloat16` computes the same as
training in bfloat16: products of rounded weights and inputs, summed in float32; normalization and the residual stream
are in float32. `int8` rounds each row of a weight matrix to 255 steps with its own scale (Q8_0: one per 32 numbers).
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
    """A copy of `model` for inference with its matrices in `precision`, or `model` itself if a copy is no faster.

    Embeddings, norms and the cache stay in float32. Raises ValueError for an unknown precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"--precision {precision!r}: choose one of {', '.join(get_args(Precision))}.")
    if precision == "float32" and not (_can_pack(model.device) and _is_large(model.blocks[0].mlp.c_fc)):
        return model
    if precision == "int8" and model.device.type != "cpu":
        raise ValueError(f"--precision int8 works only on CPUs. Use bfloat16 on {model.device.type}.")
    converted = copy.deepcopy(model).eval().requires_grad_(False)
    if converted.lm_head is None:
        converted.lm_head = nn.Linear(model.config.n_embd, model.vocab_size, bias=False, device=model.device)
        converted.lm_head.weight = converted.wte.weight
    for name, module in list(converted.named_modules()):
        if isinstance(module, nn.Linear):
            converted.set_submodule(name, _linear(module, precision))
    return converted


def _linear(linear: nn.Linear, precision: Precision) -> nn.Module:
    if precision == "int8":
        return Int8Linear(linear)
    if precision == "float32" and not _is_large(linear):
        return linear
    return PackedLinear(linear, torch.float32 if precision == "float32" else torch.bfloat16)


def _can_pack(device: torch.device) -> bool:
    return device.type == "cpu" and torch.backends.mkldnn.is_available()


def _is_large(linear: nn.Linear) -> bool:
    """Whether a product takes long enough to be worth oneDNN's call, which has more overhead than PyTorch's own."""
    return linear.weight.numel() >= 2**17


class PackedLinear(nn.Module):
    """A linear layer with weights in `dtype`, and inputs and outputs in float32.

    On CPUs the weights are converted once to oneDNN's layout. For few tokens that is 1.4 times as fast in float32 as
    PyTorch's row layout, and twice as fast in bfloat16.
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
    """Weights (out, in) as int8, and the scales (out,) to multiply them with."""
    weight = weight.detach().float()
    scales = weight.abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and a scale per output, and inputs and outputs in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales = in_int8(linear.weight)
        # PyTorch's kernel reads whole vectors, and so past the end of shorter rows. Zeros there change nothing.
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
