"""NumbaDecoder: the model's forward pass for a few tokens as one compiled function.

For a single text, PyTorch spends more time on calling its hundred operators than on the arithmetic.
`numba_kernels.forward` has no such calls. Tests compare it with `GPT.forward`.

Shapes: C width, hd head size, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
import torch.nn as nn

from groundling.acceleration.numba_kernels import forward
from groundling.acceleration.precision import Precision, in_int8
from groundling.inference.speed_selector import SpeedSelector
from groundling.model.gpt import GPT, SelfAttention
from groundling.model.kv_cache import KVCache

_F32 = npt.NDArray[np.float32]


class _Matrices(NamedTuple):
    """One linear layer of all blocks: weights (layers, out, in) in float32, int8, or bfloat16 stored as uint16."""

    weight: npt.NDArray[Any]
    scale: _F32  # (layers, out); ones if the weights are not int8
    bias: _F32


class _Weights(NamedTuple):
    wte: _F32  # (V, C)
    wpe: _F32  # (positions, C); 0 positions in a rotary model
    cos: _F32  # (positions, hd / 2); 0 positions in a model with learned ones
    sin: _F32
    windows: npt.NDArray[np.int64]  # (layers,)
    norms: _F32  # (layers, 2 norms, weight and bias, C)
    head_norms: _F32  # (layers, query and key, hd); 0 instead of hd without QK-norm
    qkv: _Matrices
    proj: _Matrices
    fc: _Matrices
    out: _Matrices
    last_norm: _F32  # (weight and bias, C)
    head: _Matrices  # one layer


class NumbaDecoder:
    """Computes `GPT.forward` with a cache for a few tokens, on a CPU. Needs Numba (the extra `fast`).

    The result for a token is the same to the bit, whatever other tokens are read with it and on however many threads.
    It uses as many threads as PyTorch, or one if that is faster (small models, busy machines).
    """

    def __init__(self, model: GPT, precision: Precision) -> None:
        config, blocks = model.config, model.blocks
        rope = blocks[0].attn.rope
        none = np.zeros((0, config.head_dim), np.float32)
        head = nn.Linear(1, 1, bias=False)
        head.weight = model.wte.weight if model.lm_head is None else model.lm_head.weight
        self._shape = (
            config.n_head, config.kv_heads, config.norm == "rmsnorm", config.mlp == "swiglu",
            np.float32(config.epsilon), np.float32(config.qk_epsilon),
        )  # fmt: skip
        self._weights = _Weights(
            _array(model.wte.weight),
            none if model.wpe is None else _array(model.wpe.weight),
            none if rope is None else _array(rope.cos),
            none if rope is None else _array(rope.sin),
            np.array(config.windows),
            np.stack([[_norm(block.ln_1), _norm(block.ln_2)] for block in blocks]),
            np.stack([_head_norms(block.attn) for block in blocks]),
            _matrices([block.attn.c_attn for block in blocks], precision),
            _matrices([block.attn.c_proj for block in blocks], precision),
            _matrices([block.mlp.c_fc for block in blocks], precision),
            _matrices([block.mlp.c_proj for block in blocks], precision),
            _norm(model.ln_f),
            _matrices([head], precision),
        )
        # Each further token takes 0.6 times as long as the first, but almost nothing in PyTorch, where calls dominate.
        # The limit comes from the size, not from timing: otherwise the text's last digits would depend on timing.
        self.most = min(16, max(1, 86_000_000 // (sum(p.numel() for p in model.h.parameters()) + head.weight.numel())))
        """Up to this many tokens at once it is faster than the model."""
        self._selector, self._threads, ours = SpeedSelector(), 1, torch.get_num_threads()
        self.read([0], [0], [0], model.new_cache(1, capacity=1))  # compiles, if new to this machine
        self._threads = _most_threads()
        torch.set_num_threads(ours)  # Numba has set OpenMP's thread count, which PyTorch shares, to all cores

    def read(self, tokens: Sequence[int], rows: Sequence[int], positions: Sequence[int], cache: KVCache) -> _F32:
        """Read the tokens into the cache, those of a row in order. Returns logits (n, V). Does not change lengths."""
        threads, began = min(self._threads, torch.get_num_threads()), time.perf_counter()
        parallel = threads > 1 and self._selector.takes(len(tokens))
        if parallel:
            numba.set_num_threads(threads)
        logits: _F32 = forward(
            np.array(tokens), np.array(rows), np.array(positions), self._weights, *self._shape,
            cache.keys.numpy(), cache.values.numpy(), threads if parallel else 1,
        )  # fmt: skip
        if threads > 1:
            self._selector.record(len(tokens), parallel, time.perf_counter() - began)
        return logits


def _most_threads() -> int:
    numba.get_num_threads()  # starts the threads, so that the threading layer is known
    # "workqueue", used without OpenMP and TBB, kills the process if two Python threads use it at once.
    return 1 if numba.threading_layer() == "workqueue" else numba.config.NUMBA_NUM_THREADS


def _array(tensor: torch.Tensor) -> _F32:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def _norm(norm: nn.Module) -> _F32:
    """Weight and bias, (2, C)."""
    weight = _array(norm.weight)  # type: ignore[arg-type]
    bias = getattr(norm, "bias", None)
    return np.stack([weight, np.zeros_like(weight) if bias is None else _array(bias)])


def _head_norms(attention: SelfAttention) -> _F32:
    rope = attention.rope
    if rope is None or not isinstance(rope.q_norm, nn.RMSNorm) or not isinstance(rope.k_norm, nn.RMSNorm):
        return np.zeros((2, 0), np.float32)
    return np.stack([_array(rope.q_norm.weight), _array(rope.k_norm.weight)])


def _matrices(layers: Sequence[nn.Linear], precision: Precision) -> _Matrices:
    weights, scales, biases = list[npt.NDArray[Any]](), list[_F32](), list[_F32]()
    for layer in layers:
        weight, scale = layer.weight.detach().float(), torch.ones(layer.weight.size(0))
        if precision == "int8":
            weight, scale = in_int8(weight)
        elif precision == "bfloat16":
            weight = layer.weight.detach().bfloat16().view(torch.uint16)
        weights.append(weight.cpu().numpy())
        scales.append(_array(scale))
        biases.append(np.zeros_like(scales[-1]) if layer.bias is None else _array(layer.bias))
    return _Matrices(np.stack(weights), np.stack(scales), np.stack(biases))
