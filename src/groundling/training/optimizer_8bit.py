"""Optimizer state in 8 bits: a code for each number, and a scale for each block of a row. And AdamW with such state.

The code is that of Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2021): a number is divided by the
largest magnitude of its block and becomes the nearest of 256 levels. Half of the levels are for the largest tenth of
magnitudes, half of the rest for the next tenth, and so on over seven decades. Small tensors stay in float32. Four
things differ from the paper:

- A block lies within a row. So a matrix that is sharded by rows has the same blocks on any number of processes, and a
  rare token of the embedding does not share a scale with a frequent one.
- The largest magnitude of a block is a level, with both signs. Otherwise it would shrink a little at each step.
- The second moment is stored as its square root, by which the update is divided. Squares span twice the decades.
- 0 is no level of the second moment, so no update is divided by a number that was rounded to 0.

Why not torchao's AdamW8bit: see docs/dependencies.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import cache
from typing import Any

import torch

from groundling.model.describe import CODE, Shape, block_columns
from groundling.model.weights_file import dtype_of
from groundling.parallel.shards import local
from groundling.parallel.whole import own_part

_SCALE = "_scale"
_DECADES = 7
_AT_ONCE, _AT_ONCE_ON_CPU = 1 << 23, 1 << 17  # numbers in float32: a CPU is fastest within its caches


@cache
def levels(signed: bool, device: torch.device) -> torch.Tensor:
    """What the codes 0 to 255 stand for, in ascending order. Numbers without sign are above 0."""
    magnitudes = torch.cat([
        10.0 ** (decade - _DECADES + 1) * torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)[1:]
        for decade in range(_DECADES)
    ])  # fmt: skip
    found = torch.cat([-magnitudes.flip(0), torch.zeros(1), magnitudes]) if signed else magnitudes
    return torch.cat([found, torch.ones(256 - len(found))]).to(device)  # a code from a file may be any byte


@cache
def _nearest(signed: bool, device: torch.device) -> torch.Tensor:
    """The code of the level nearest to each number in half precision, in the order of their bits as an integer.

    To look a code up takes a CPU a thirtieth of the time of a binary search among the levels.
    """
    numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16).float()
    each = levels(signed, torch.device("cpu"))
    return torch.bucketize(numbers, (each[1:] + each[:-1]) / 2).to(torch.uint8).to(device)


def quantize(numbers: torch.Tensor, columns: int, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes (R, C) of a matrix, and the scales (R, C / columns) of its blocks of so many columns."""
    blocks = numbers.unflatten(1, (-1, columns))
    scales = blocks.abs().amax(2)
    half = (blocks / scales.clamp(min=1e-30)[..., None]).half()
    place = half.view(torch.int16).int() + (1 << 15)
    return _nearest(signed, numbers.device).index_select(0, place.flatten()).view_as(numbers), scales


def dequantize(codes: torch.Tensor, scales: torch.Tensor, signed: bool) -> torch.Tensor:
    """The matrix (R, C) of codes (R, C) and scales (R, blocks), in float32."""
    numbers = levels(signed, codes.device).index_select(0, codes.flatten().int())
    return (numbers.view(*scales.shape, -1) * scales[..., None]).view_as(codes)


def shapes_of(quantity: str, shape: Shape) -> dict[str, Shape]:
    """The shapes of the codes and scales of a quantity of a matrix, by name."""
    return {quantity + CODE: shape, quantity + _SCALE: (shape[0], shape[1] // block_columns(shape))}


def codes_and_scales(
    state: MutableMapping[str, Any], quantity: str, parameter: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of a quantity of a parameter that are here, to read and to write. Zeros if it has none yet."""
    for name, shape in shapes_of(quantity, tuple(parameter.shape)).items():
        if name not in state:
            state[name] = own_part(torch.zeros(shape, dtype=dtype_of(name)), parameter)
    return local(state[quantity + CODE]), local(state[quantity + _SCALE])


def store(
    numbers: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, signed: bool, skip: torch.Tensor | None
) -> None:
    """Quantize a matrix into codes and scales, unless `skip` is True."""
    for target, value in zip((codes, scales), quantize(numbers, codes.size(1) // scales.size(1), signed), strict=True):
        _assign(target, value, skip)


def _assign(target: torch.Tensor, value: torch.Tensor, skip: torch.Tensor | None) -> None:
    """Copy `value` into `target`, unless `skip` is True."""
    target.copy_(value if skip is None else torch.where(skip, target, value))


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) for matrices of which `block_columns` is not 0, with both moments in 8 bits.

    A step computes in float32, a few million numbers at a time. Of a matrix that is sharded, each rank computes with
    the rows or columns that it has.
    """

    found_inf: torch.Tensor | None = None
    """See `Optimizers.step`."""

    def __init__(
        self, parameters: Iterable[torch.Tensor], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step. The `closure` of PyTorch's interface is not used."""
        skip = None if self.found_inf is None else self.found_inf > 0
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                state = self.state[parameter]
                steps = state.setdefault("step", torch.zeros((), device=parameter.device))
                _assign(steps, steps + 1, skip)
                moments = [codes_and_scales(state, name, parameter) for name in ("exp_avg", "exp_avg_sq")]
                tensors = (local(parameter), local(parameter.grad), *moments[0], *moments[1])
                at_once = _AT_ONCE_ON_CPU if parameter.device.type == "cpu" else _AT_ONCE
                rows = max(1, at_once // tensors[0].size(1))
                for parts in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
                    self._update(parts, steps, group, skip)

    def _update(
        self, rows: Sequence[torch.Tensor], steps: torch.Tensor, group: dict[str, Any], skip: torch.Tensor | None
    ) -> None:
        """Update some rows of weights, given with their gradients and the codes and scales of both moments."""
        weights, gradient, codes, scales, root_codes, root_scales = rows
        (beta1, beta2), lr = group["betas"], group["lr"]
        mean = dequantize(codes, scales, signed=True).lerp_(gradient, 1 - beta1)
        square = dequantize(root_codes, root_scales, signed=False).square_()
        root = square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2).sqrt_()
        store(mean, codes, scales, True, skip)
        store(root, root_codes, root_scales, False, skip)
        root.div_((1 - beta2**steps).sqrt()).add_(group["eps"])
        update = mean.div_(root).mul_(lr / (1 - beta1**steps))
        _assign(weights, weights * (1 - lr * group["weight_decay"]) - update, skip)
