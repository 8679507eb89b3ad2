"""The model, compiled by torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from groundling.machine import Machine
from groundling.model.gpt import GPT

Forward = Callable[..., torch.Tensor]
"""A function to call instead of the model: the model itself, or its compiled form."""

_LAUNCH_BOUND = 5e7  # parameters: with fewer, a GPU finishes a kernel before the next one is launched


def compiled_forward(model: GPT, machine: Machine, graphs: bool) -> Forward:
    """The model, compiled when it first runs. With `graphs`, a small model on a GPU is recorded as CUDA graphs."""
    if machine.device.type != "cuda":
        return functools.partial(model, run=compiled_parts())
    # A GPU is worth the minute that compiling a whole model takes, and a small model waits for Python between its
    # kernels: as a CUDA graph, a pass is one launch. (Each pass reuses the graph's memory. Gradients that are added up
    # over several passes would be lost, and so would a teacher's logits.)
    small = sum(p.numel() for p in model.parameters()) < _LAUNCH_BOUND
    mode = "reduce-overhead" if small and graphs else "default"
    return torch.compile(model, dynamic=False, mode=mode)


def compiled_parts() -> Forward:
    """A `run` for `GPT.forward` that compiles each part on its first call.

    All blocks share one compiled function, so six blocks take a sixth of the time to compile. They run no slower.
    """
    compiled: Callable[[Forward], Forward] = functools.cache(functools.partial(torch.compile, dynamic=False))
    return lambda part, *arguments: compiled(part)(*arguments)
