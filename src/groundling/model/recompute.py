"""Activation checkpointing: less memory for more time (Chen et al., "Training deep nets with sublinear memory cost",
2016). Instead of keeping what a module computed, the backward pass computes it again from the module's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def recomputed(call: Callable[..., torch.Tensor], module: nn.Module, *arguments: Any) -> torch.Tensor:
    """`call(module, *arguments)`, which computes `module(*arguments)`. Only the arguments are kept for the backward
    pass. The second time has the random numbers of the first, so dropout drops the same.
    """
    if not torch.is_grad_enabled():
        return call(module, *arguments)
    # An adapter puts its weights in place for its own forward pass only. The second time needs them too.
    weights = {} if torch.compiler.is_compiling() else {n: p for n, p in module.named_parameters() if not p.is_leaf}
    if weights:
        result: torch.Tensor = checkpoint(functional_call, module, weights, arguments, use_reentrant=False)
    else:
        result = checkpoint(call, module, *arguments, use_reentrant=False)
    return result
