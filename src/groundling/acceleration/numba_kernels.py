"""The model's forward pass as plain loops. Numba compiles them for this machine on first use and keeps the result.

Each weight is read once, by one thread, and used for all tokens of a pass.

Shapes: n tokens, each with its row of the cache and its position; C width, hd head size, V vocabulary.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import overload

from groundling import storage

F = TypeVar("F", bound=Callable[..., Any])
_f32 = np.float32


def _can_cache() -> bool:
    """Whether there is a place to keep compiled code: beside this file, in the user's cache folder, or in ours."""
    for place in (lambda: numba.config.CACHE_DIR, lambda: str(storage.cache_folder() / "numba")):
        with suppress(RuntimeError, OSError):
            numba.config.CACHE_DIR = place()
            numba.njit(cache=True)(_can_cache)
            return True
    return False


_OPTIONS = {"cache": _can_cache(), "nogil": True}
_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # never called from Python: less to compile


def _compiled(function: F) -> F:
    return cast(F, numba.njit(**_OPTIONS, **_INNER)(function))


def _sum(function: F) -> F:
    # A sum may be reordered, so that it is vectorized. Nothing else may: the process that compiles a function and those
    # that load it from the cache would then compute other last digits.
    return cast(F, numba.njit(fastmath={"reassoc", "contract"}, **_OPTIONS, **_INNER)(function))


def _parallel(function: F) -> F:
    # `prange` divides its loop among threads. Starting it takes microseconds, so with one thread we use `range`.
    return cast(F, numba.njit(parallel=True, **_OPTIONS, **_INNER)(function))


def _float32(weight):
    raise NotImplementedError  # Numba compiles the overload below instead


@overload(_float32)
def _float32_overload(weight):
    """A stored weight as float32."""
    if weight == numba.types.uint16:  # bfloat16: the upper half of a float32
        return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)
    return lambda weight: _f32(weight)


@_sum
def _dot(a, b):
    total = _f32(0)
    for i in range(a.shape[0]):
        total += _float32(a[i]) * b[i]
    return total


@_sum
def _mean(x):
    total = _f32(0)
    for i in range(x.shape[0]):
        total += x[i]
    return total / _f32(x.shape[0])


@_sum
def _variance(x, mean):
    total = _f32(0)
    for i in range(x.shape[0]):
        total += (x[i] - mean) * (x[i] - mean)
    return total / _f32(x.shape[0])


@_compiled
def _matmul_rows(weight, scale, bias, x, y, begin, end):
    """Outputs `begin` to `end` of y (n, out) = x (n, in) times a matrix (out, in)."""
    for o in range(begin, end):
        row = weight[o]
        for t in range(x.shape[0]):
            y[t, o] = _dot(row, x[t]) * scale[o] + bias[o]


@_compiled
def _add(x, added):
    """x += added. A loop, because Numba takes seconds to compile NumPy operators."""
    for t in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[t, i] += added[t, i]


@_parallel
def _linear(m, layer, x, y, threads):
    """y (n, out) = x (n, in) times the matrix of a layer."""
    weight, scale, bias = m.weight[layer], m.scale[layer], m.bias[layer]
    out = weight.shape[0]
    if threads == 1:
        _matmul_rows(weight, scale, bias, x, y, 0, out)
    else:
        for k in numba.prange(threads):
            _matmul_rows(weight, scale, bias, x, y, k * out // threads, (k + 1) * out // threads)


@_compiled
def _normalize(x, norm, is_rms, epsilon, y):
    """y = RMSNorm or LayerNorm of x (n, C), with weight and bias (2, C)."""
    for t in range(x.shape[0]):
        mean = _f32(0) if is_rms else _mean(x[t])
        factor = _f32(1) / np.sqrt(_variance(x[t], mean) + epsilon)
        for i in range(x.shape[1]):
            y[t, i] = (x[t, i] - mean) * factor * norm[0, i] + norm[1, i]


@_compiled
def _rotate(x, weight, cos, sin, epsilon):
    """Normalize a query or key (hd,), unless `weight` is empty, and rotate it to its position, in place."""
    half = x.shape[0] // 2
    if weight.shape[0]:
        factor = _f32(1) / np.sqrt(_dot(x, x) / _f32(x.shape[0]) + epsilon)
        for i in range(x.shape[0]):
            x[i] = x[i] * factor * weight[i]
    for i in range(half):
        a, b = x[i], x[i + half]
        x[i] = a * cos[i] - b * sin[i]
        x[i + half] = b * cos[i] + a * sin[i]


@_compiled
def _attend(q, keys, values, n, weights, y):
    """y = attention of a query (hd,) to the first n keys and values (positions, hd). `weights` is scratch space."""
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
def _store(qkv, rows, positions, w, layer, n_head, n_kv, epsilon, keys, values):
    """Store the keys and values of qkv (n, heads, hd) in the cache."""
    for t in range(len(rows)):
        row, place = rows[t], positions[t]
        for h in range(n_kv):
            key = qkv[t, n_head + h]
            if w.cos.shape[0]:
                _rotate(key, w.head_norms[layer, 1], w.cos[place], w.sin[place], epsilon)
            value = qkv[t, n_head + n_kv + h]
            for i in range(key.shape[0]):
                keys[row, h, place, i], values[row, h, place, i] = key[i], value[i]


@_parallel
def _attend_all(qkv, rows, positions, window, cos, sin, norm, epsilon, keys, values, scores, y, threads):
    """y (n, query heads, hd) = attention of the queries in qkv (n, heads, hd) to the newest `window` keys and values in
    the cache. 0: to all."""
    n_head = y.shape[1]
    shared = n_head // keys.shape[1]
    if threads == 1:
        for h in range(n_head):
            _attend_head(h, h // shared, qkv, rows, positions, window, cos, sin, norm, epsilon, keys, values, scores, y)
    else:
        for h in numba.prange(n_head):
            _attend_head(h, h // shared, qkv, rows, positions, window, cos, sin, norm, epsilon, keys, values, scores, y)


@_compiled
def _attend_head(h, shared, qkv, rows, positions, window, cos, sin, norm, epsilon, keys, values, scores, y):
    """Attention of one head's queries to the keys and values of head `shared`."""
    for t in range(len(rows)):
        query, row, place = qkv[t, h], rows[t], positions[t]
        if cos.shape[0]:
            _rotate(query, norm, cos[place], sin[place], epsilon)
        first = max(place + 1 - window, 0) if window else 0
        _attend(query, keys[row, shared, first:], values[row, shared, first:], place + 1 - first, scores[h], y[t, h])


@_parallel
def _activations(m, layer, x, is_gated, hidden, y, threads):
    """y (n, H) = the activations of x (n, C) times the matrix. `hidden` is scratch space."""
    weight, scale, bias, H = m.weight[layer], m.scale[layer], m.bias[layer], y.shape[1]
    if threads == 1:
        _activate(weight, scale, bias, x, is_gated, hidden, y, 0, H)
    else:
        for k in numba.prange(threads):
            _activate(weight, scale, bias, x, is_gated, hidden, y, k * H // threads, (k + 1) * H // threads)


@_compiled
def _activate(weight, scale, bias, x, is_gated, hidden, y, begin, end):
    """GELU in its tanh form, written as x times a sigmoid; or SwiGLU, with the gates before the values."""
    H = y.shape[1]
    _matmul_rows(weight, scale, bias, x, hidden, begin, end)
    if is_gated:
        _matmul_rows(weight, scale, bias, x, hidden, H + begin, H + end)
    for t in range(x.shape[0]):
        for i in range(begin, end):
            v = hidden[t, i]
            if is_gated:
                y[t, i] = v / (_f32(1) + np.exp(-v)) * hidden[t, H + i]
            else:
                slope = _f32(2 * math.sqrt(2 / math.pi)) * (v + _f32(0.044715) * v * v * v)
                y[t, i] = v / (_f32(1) + np.exp(-slope))


@numba.njit(**_OPTIONS)
def forward(tokens, rows, positions, w, n_head, n_kv, is_rms, is_gated, epsilon, qk_epsilon, keys, values, threads):
    """Logits (n, V) of tokens (n,) at these rows and positions of the cache, `keys` and `values`.

    `w` are the weights of `NumbaDecoder`. The result is the same to the bit for any number of threads.
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
        _normalize(x, w.norms[layer, 0], is_rms, epsilon, normed)
        _linear(w.qkv, layer, normed, qkv, threads)
        heads = qkv.reshape(n, -1, hd)
        _store(heads, rows, positions, w, layer, n_head, n_kv, qk_epsilon, keys[layer], values[layer])
        _attend_all(heads, rows, positions, w.windows[layer], w.cos, w.sin, w.head_norms[layer, 0], qk_epsilon,
                    keys[layer], values[layer], scores, gathered.reshape(n, n_head, hd), threads)  # fmt: skip
        _linear(w.proj, layer, gathered, added, threads)
        _add(x, added)
        _normalize(x, w.norms[layer, 1], is_rms, epsilon, normed)
        _activations(w.fc, layer, normed, is_gated, hidden, active, threads)
        _linear(w.out, layer, active, added, threads)
        _add(x, added)
    _normalize(x, w.last_norm, is_rms, epsilon, normed)
    logits = np.empty((n, w.wte.shape[0]), _f32)
    _linear(w.head, np.int64(0), normed, logits, threads)  # the type of `layer`, so that it is compiled once
    return logits
