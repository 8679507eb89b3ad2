"""The model once more, for few tokens at a time, as one compiled function: a pass without any calls between its parts.

Where one text is written, PyTorch spends more time on calling its hundred operators than on the arithmetic. Numba
compiles the loops below for this machine, on first use, and keeps what it compiled. A weight is read once, by one
thread, and used for all tokens of a pass. Tests hold it to what `GPT.forward` computes.

Shapes: n tokens, each with the row of the cache and the position where it stands; C width, hd head size, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
import torch.nn as nn
from numba.extending import overload

from groundling.inference.pace import Pace
from groundling.inference.precision import Precision, in_int8
from groundling.model.cache import KVCache
from groundling.model.gpt import GPT, Rotary, SelfAttention

F = TypeVar("F", bound=Callable[..., Any])
_F32 = npt.NDArray[np.float32]
_f32 = np.float32


# Sums may be taken in any order, which lets them be vectorized; infinity and NaN keep their meaning.
_OPTIONS = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "cache": True, "nogil": True}
_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # Python calls none of these: less to compile


def _compiled(function: F) -> F:
    return cast(F, numba.njit(**_OPTIONS, **_INNER)(function))


def _in_parallel(function: F) -> F:
    # A `prange` is divided among threads. To begin one takes microseconds: one thread goes round it.
    return cast(F, numba.njit(parallel=True, **_OPTIONS, **_INNER)(function))


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


class FewTokens:
    """Reads few tokens as `GPT.forward` does with a cache, on a CPU. Needs Numba, the extra `fast`.

    What it computes for a token does not depend, to the bit, on those that it reads beside it, nor on the number of
    threads: PyTorch's, or one where that is faster, as it is for small models and beside other busy programs.
    """

    def __init__(self, model: GPT, precision: Precision) -> None:
        config, blocks = model.config, model.blocks
        turn = next((block.attn.turn for block in blocks if isinstance(block.attn.turn, Rotary)), None)
        none = np.zeros((0, config.head_dim), np.float32)
        head = nn.Linear(1, 1, bias=False)
        head.weight = model.wte.weight if model.lm_head is None else model.lm_head.weight
        self._shape = (config.n_head, config.kv_heads, config.norm == "rmsnorm", config.mlp == "swiglu")
        self._weights = _Weights(
            _array(model.wte.weight),
            none if model.wpe is None else _array(model.wpe.weight),
            none if turn is None else _array(turn.cos),
            none if turn is None else _array(turn.sin),
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
        self._pace, self._threads, ours = Pace(), 1, torch.get_num_threads()
        self.read([0], [0], [0], model.new_cache(1, capacity=1))  # compiles, where that is new to this machine
        self._threads = _most_threads()
        torch.set_num_threads(ours)  # OpenMP has one number for both, and Numba has set it to all cores

    def read(self, tokens: Sequence[int], rows: Sequence[int], positions: Sequence[int], cache: KVCache) -> _F32:
        """Read the tokens into the cache, those of a row in their order; logits (n, V). Lengths stay as they are."""
        threads, began = min(self._threads, torch.get_num_threads()), time.perf_counter()
        spread = threads > 1 and self._pace.takes(len(tokens))
        if spread:
            numba.set_num_threads(threads)
        logits: _F32 = _forward(
            np.array(tokens), np.array(rows), np.array(positions), self._weights, *self._shape,
            cache.keys.numpy(), cache.values.numpy(), threads if spread else 1,
        )  # fmt: skip
        self._pace.record(len(tokens), spread, time.perf_counter() - began)
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
    turn = attention.turn
    if not isinstance(turn, Rotary):
        return np.ones((2, attention.head_dim), np.float32)
    return np.stack([_array(turn.q_norm.weight), _array(turn.k_norm.weight)])


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


def _number(weight):  # type: ignore[no-untyped-def]
    raise NotImplementedError  # what is compiled in its place follows


@overload(_number)
def _number_of(weight):  # type: ignore[no-untyped-def]
    """A weight in float32, whatever it is stored in."""
    if weight == numba.types.uint16:  # bfloat16, the upper half of a float32
        return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)
    return lambda weight: _f32(weight)


@_compiled
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = _f32(0)
    for i in range(a.shape[0]):
        total += _number(a[i]) * b[i]
    return total


@_compiled
def _rows(weight, scale, bias, x, y, begin, end):  # type: ignore[no-untyped-def]
    """Of y (n, out) = x (n, in) times a matrix (out, in), the outputs from `begin` to `end`."""
    for o in range(begin, end):
        row = weight[o]
        for t in range(x.shape[0]):
            y[t, o] = _dot(row, x[t]) * scale[o] + bias[o]


@_compiled
def _add(x, added):  # type: ignore[no-untyped-def]
    """Loops, here and elsewhere, where NumPy has an operator: Numba takes seconds to compile those."""
    for t in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[t, i] += added[t, i]


@_in_parallel
def _linear(m, layer, x, y, threads):  # type: ignore[no-untyped-def]
    """y (n, out) = x (n, in) times the matrix, which is read once."""
    weight, scale, bias = m.weight[layer], m.scale[layer], m.bias[layer]
    out = weight.shape[0]
    if threads == 1:
        _rows(weight, scale, bias, x, y, 0, out)
    else:
        for k in numba.prange(threads):
            _rows(weight, scale, bias, x, y, k * out // threads, (k + 1) * out // threads)


@_compiled
def _normalize(x, norm, is_rms, y):  # type: ignore[no-untyped-def]
    """RMSNorm or LayerNorm of each x (n, C), by weight and bias (2, C)."""
    C = x.shape[1]
    for t in range(x.shape[0]):
        mean = _f32(0)
        if not is_rms:
            for i in range(C):
                mean += x[t, i]
            mean /= _f32(C)
        square = _f32(0)
        for i in range(C):
            square += (x[t, i] - mean) * (x[t, i] - mean)
        factor = _f32(1) / np.sqrt(square / _f32(C) + _f32(1e-6 if is_rms else 1e-5))
        for i in range(C):
            y[t, i] = (x[t, i] - mean) * factor * norm[0, i] + norm[1, i]


@_compiled
def _turn(x, weight, cos, sin):  # type: ignore[no-untyped-def]
    """A query or key (hd,), normalized and turned in place."""
    half = x.shape[0] // 2
    factor = _f32(1) / np.sqrt(_dot(x, x) / _f32(x.shape[0]) + _f32(1e-6))
    for i in range(half):
        a, b = x[i] * factor * weight[i], x[i + half] * factor * weight[i + half]
        x[i] = a * cos[i] - b * sin[i]
        x[i + half] = b * cos[i] + a * sin[i]


@_compiled
def _attend(q, keys, values, n, weights, y):  # type: ignore[no-untyped-def]
    """A query (hd,) over the first n keys and values (positions, hd); `weights` is room for n numbers."""
    scale, top, total = _f32(1 / math.sqrt(q.shape[0])), _f32(-np.inf), _f32(0)
    for s in range(n):
        weights[s] = _dot(keys[s], q) * scale
        top = max(top, weights[s])
    for s in range(n):
        weights[s] = np.exp(weights[s] - top)
        total += weights[s]
    for i in range(q.shape[0]):
        y[i] = _f32(0)
    for s in range(n):
        share = weights[s] / total
        for i in range(q.shape[0]):
            y[i] += share * values[s, i]


@_compiled
def _remember(qkv, rows, positions, w, layer, n_head, n_kv, keys, values):  # type: ignore[no-untyped-def]
    """The keys and values in qkv (n, heads, hd) go into the cache."""
    for t in range(len(rows)):
        row, place = rows[t], positions[t]
        for h in range(n_kv):
            key = qkv[t, n_head + h]
            if w.cos.shape[0]:
                _turn(key, w.head_norms[layer, 1], w.cos[place], w.sin[place])
            value = qkv[t, n_head + n_kv + h]
            for i in range(key.shape[0]):
                keys[row, h, place, i], values[row, h, place, i] = key[i], value[i]


@_in_parallel
def _attention(qkv, rows, positions, cos, sin, norm, keys, values, scores, y, threads):  # type: ignore[no-untyped-def]
    """The queries in qkv (n, heads, hd), over the keys and values in the cache, to y (n, query heads, hd)."""
    n_head = y.shape[1]
    shared = n_head // keys.shape[1]
    if threads == 1:
        for h in range(n_head):
            _head(h, h // shared, qkv, rows, positions, cos, sin, norm, keys, values, scores, y)
    else:
        for h in numba.prange(n_head):
            _head(h, h // shared, qkv, rows, positions, cos, sin, norm, keys, values, scores, y)


@_compiled
def _head(h, shared, qkv, rows, positions, cos, sin, norm, keys, values, scores, y):  # type: ignore[no-untyped-def]
    """One head's queries, over the keys and values of the head `shared`."""
    for t in range(len(rows)):
        query, row, place = qkv[t, h], rows[t], positions[t]
        if cos.shape[0]:
            _turn(query, norm, cos[place], sin[place])
        _attend(query, keys[row, shared], values[row, shared], place + 1, scores[h], y[t, h])


@_in_parallel
def _hidden(m, layer, x, is_gated, hidden, y, threads):  # type: ignore[no-untyped-def]
    """y (n, H), the activations of x (n, C) times the matrix; `hidden` is room for what they are of."""
    weight, scale, bias, H = m.weight[layer], m.scale[layer], m.bias[layer], y.shape[1]
    if threads == 1:
        _activated(weight, scale, bias, x, is_gated, hidden, y, 0, H)
    else:
        for k in numba.prange(threads):
            _activated(weight, scale, bias, x, is_gated, hidden, y, k * H // threads, (k + 1) * H // threads)


@_compiled
def _activated(weight, scale, bias, x, is_gated, hidden, y, begin, end):  # type: ignore[no-untyped-def]
    """GELU in its tanh form, which is x times a sigmoid; or SwiGLU, whose gates come first and then the values."""
    H = y.shape[1]
    _rows(weight, scale, bias, x, hidden, begin, end)
    if is_gated:
        _rows(weight, scale, bias, x, hidden, H + begin, H + end)
    for t in range(x.shape[0]):
        for i in range(begin, end):
            v = hidden[t, i]
            if is_gated:
                y[t, i] = v / (_f32(1) + np.exp(-v)) * hidden[t, H + i]
            else:
                slope = _f32(2 * math.sqrt(2 / math.pi)) * (v + _f32(0.044715) * v * v * v)
                y[t, i] = v / (_f32(1) + np.exp(-slope))


@numba.njit(**_OPTIONS)
def _forward(tokens, rows, positions, w, n_head, n_kv, is_rms, is_gated, keys, values, threads):  # type: ignore[no-untyped-def]
    n, C, hd = len(tokens), w.wte.shape[1], keys.shape[4]
    x, normed, added = np.empty((n, C), _f32), np.empty((n, C), _f32), np.empty((n, C), _f32)
    qkv, gathered = np.empty((n, w.qkv.weight.shape[1]), _f32), np.empty((n, w.proj.weight.shape[2]), _f32)
    hidden, active = np.empty((n, w.fc.weight.shape[1]), _f32), np.empty((n, w.out.weight.shape[2]), _f32)
    scores = np.empty((n_head, keys.shape[3]), _f32)
    for t in range(n):
        for i in range(C):
            x[t, i] = w.wte[tokens[t], i]
            if w.wpe.shape[0]:
                x[t, i] += w.wpe[positions[t], i]
    for layer in range(keys.shape[0]):
        _normalize(x, w.norms[layer, 0], is_rms, normed)
        _linear(w.qkv, layer, normed, qkv, threads)
        heads = qkv.reshape(n, -1, hd)
        _remember(heads, rows, positions, w, layer, n_head, n_kv, keys[layer], values[layer])
        _attention(heads, rows, positions, w.cos, w.sin, w.head_norms[layer, 0], keys[layer], values[layer], scores,
                   gathered.reshape(n, n_head, hd), threads)  # fmt: skip
        _linear(w.proj, layer, gathered, added, threads)
        _add(x, added)
        _normalize(x, w.norms[layer, 1], is_rms, normed)
        _hidden(w.fc, layer, normed, is_gated, hidden, active, threads)
        _linear(w.out, layer, active, added, threads)
        _add(x, added)
    _normalize(x, w.last_norm, is_rms, normed)
    logits = np.empty((n, w.wte.shape[0]), _f32)
    _linear(w.head, np.int64(0), normed, logits, threads)  # as `layer` is, so that it is compiled once
    return logits
