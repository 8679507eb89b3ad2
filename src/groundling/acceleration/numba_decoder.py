"""The model once more, for few tokens at a time, as one compiled function: its weights, and when it is used.

Where one text is written, PyTorch spends more time on calling its hundred operators than on the arithmetic. A pass of
`kernels.forward` calls nothing between its parts. Tests hold it to what `GPT.forward` computes.

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
from groundling.model.gpt import GPT, RoPE, SelfAttention
from groundling.model.kv_cache import KVCache

_F32 = npt.NDArray[np.float32]


class _Matrices(NamedTuple):
    """A linear layer of all blocks: weights (layers, out, in) in float32, in int8, or in bfloat16 as uint16."""

    weight: npt.NDArray[Any]
    scale: _F32  # (layers, out); ones where the weights are no int8
    bias: _F32


class _Weights(NamedTuple):
    wte: _F32  # (V, C)
    wpe: _F32  # (positions, C); no positions for rotary ones
    cos: _F32  # (positions, hd / 2); no positions for learned ones
    sin: _F32
    norms: _F32  # (layers, 2, weight and bias, C)
    head_norms: _F32  # (layers, of query and key, hd)
    qkv: _Matrices
    proj: _Matrices
    fc: _Matrices
    out: _Matrices
    last_norm: _F32  # (weight and bias, C)
    head: _Matrices  # of one layer


class NumbaDecoder:
    """Reads few tokens as `GPT.forward` does with a cache, on a CPU. Needs Numba, the extra `fast`.

    What it computes for a token does not depend, to the bit, on those that it reads beside it, nor on the number of
    threads: PyTorch's, or one where that is faster, as it is for small models and beside other busy programs.
    """

    def __init__(self, model: GPT, precision: Precision) -> None:
        config, blocks = model.config, model.blocks
        rope = next((block.attn.rope for block in blocks if isinstance(block.attn.rope, RoPE)), None)
        none = np.zeros((0, config.head_dim), np.float32)
        head = nn.Linear(1, 1, bias=False)
        head.weight = model.wte.weight if model.lm_head is None else model.lm_head.weight
        self._shape = (config.n_head, config.kv_heads, config.norm == "rmsnorm", config.mlp == "swiglu")
        self._weights = _Weights(
            _array(model.wte.weight),
            none if model.wpe is None else _array(model.wpe.weight),
            none if rope is None else _array(rope.cos),
            none if rope is None else _array(rope.sin),
            np.stack([[_norm(block.ln_1), _norm(block.ln_2)] for block in blocks]),
            np.stack([_head_norms(block.attn) for block in blocks]),
            _matrices([block.attn.c_attn for block in blocks], precision),
            _matrices([block.attn.c_proj for block in blocks], precision),
            _matrices([block.mlp.c_fc for block in blocks], precision),
            _matrices([block.mlp.c_proj for block in blocks], precision),
            _norm(model.ln_f),
            _matrices([head], precision),
        )
        # Each more token takes 0.6 times as long as the first, and in the model, whose calls take longer than its
        # products, next to nothing. By size and not by a stopwatch: the text would depend on it, in its last digits.
        self.most = min(16, max(1, 86_000_000 // (sum(p.numel() for p in model.h.parameters()) + head.weight.numel())))
        """Tokens at once up to which this is the faster way."""
        self._selector, self._threads, ours = SpeedSelector(), 1, torch.get_num_threads()
        self.read([0], [0], [0], model.new_cache(1, capacity=1))  # compiles, where that is new to this machine
        self._threads = _most_threads()
        torch.set_num_threads(ours)  # OpenMP has one number for both, and Numba has set it to all cores

    def read(self, tokens: Sequence[int], rows: Sequence[int], positions: Sequence[int], cache: KVCache) -> _F32:
        """Read the tokens into the cache, those of a row in their order; logits (n, V). Lengths stay as they are."""
        threads, began = min(self._threads, torch.get_num_threads()), time.perf_counter()
        spread = threads > 1 and self._selector.takes(len(tokens))
        if spread:
            numba.set_num_threads(threads)
        logits: _F32 = forward(
            np.array(tokens), np.array(rows), np.array(positions), self._weights, *self._shape,
            cache.keys.numpy(), cache.values.numpy(), threads if spread else 1,
        )  # fmt: skip
        if threads > 1:
            self._selector.record(len(tokens), spread, time.perf_counter() - began)
        return logits


def _most_threads() -> int:
    numba.get_num_threads()  # starts them, without which it cannot be said whose they are
    # What Numba falls back to without OpenMP and TBB ends the process if two threads want them at once.
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
    if not isinstance(rope, RoPE):
        return np.ones((2, attention.head_dim), np.float32)
    return np.stack([_array(rope.q_norm.weight), _array(rope.k_norm.weight)])


def _matrices(layers: Sequence[nn.Linear], precision: Precision) -> _Matrices:
    weights, scales, biases = list[npt.NDArray[Any]](), list[_F32](), list[_F32]()
    for layer in layers:
        scale = torch.ones(layer.weight.size(0))
        if precision == "int8":
            weight, scale = in_int8(layer.weight)
            weights.append(weight.cpu().numpy())
        elif precision == "bfloat16":
            weights.append(layer.weight.detach().cpu().bfloat16().view(torch.uint16).numpy())
        else:
            weights.append(_array(layer.weight))
        scales.append(_array(scale))
        biases.append(np.zeros_like(scales[-1]) if layer.bias is None else _array(layer.bias))
    return _Matrices(np.stack(weights), np.stack(scales), np.stack(biases))
