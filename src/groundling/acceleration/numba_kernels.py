"""A pass of the model in loops that Numba compiles for this machine, on first use, and keeps.

A weight is read once, by one thread, and used for all tokens of a pass.

Shapes: n tokens, each with the row of the cache and the position where it stands; C width, hd head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import overload

F = TypeVar("F", bound=Callable[..., Any])
_f32 = np.float32

# Sums may be taken in any order, which lets them be vectorized; infinity and NaN keep their meaning.
_OPTIONS = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "cache": True, "nogil": True}
_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # Python calls none of these: less to compile


def _compiled(function: F) -> F:
    return cast(F, numba.njit(**_OPTIONS, **_INNER)(function))


def _in_parallel(function: F) -> F:
    # A `prange` is divided among threads. To begin one takes microseconds: one thread goes round it.
    return cast(F, numba.njit(parallel=True, **_OPTIONS, **_INNER)(function))


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
def forward(tokens, rows, positions, w, n_head, n_kv, is_rms, is_gated, keys, values, threads):  # type: ignore[no-untyped-def]
    """Logits (n, V) of tokens (n,) that stand in these rows of the cache, `keys` and `values`, at these positions.

    `w` are the weights of `compiled.NumbaDecoder`. The figures are the same, to the bit, for any number of threads.
    """
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
