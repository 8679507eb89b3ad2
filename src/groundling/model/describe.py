"""Shapes, parameter counts, arithmetic and memory of a model, from its settings alone.

Everything is read from a `GPT` built on PyTorch's meta device, where tensors have shapes but no data. So a new kind of
layer needs no description here, and a stranger's config.json is checked before memory of its size is allocated.
"""

from __future__ import annotations

from functools import cache
from math import prod

import torch

from groundling.config import ModelSettings
from groundling.model.gpt import GPT

Shape = tuple[int, ...]
CODE = "_code"
"""What the names of tensors end with whose numbers are 8-bit codes. All others are float32."""
_BLOCK, _SHORTEST_BLOCK = 256, 32  # numbers that share a scale, at most and at least
_FEWEST = 4096  # numbers of a matrix whose optimizer state is worth 8 bits


@cache
def weight_shapes(config: ModelSettings, vocab_size: int) -> dict[str, Shape]:
    """The shapes of `GPT(config, vocab_size).state_dict()`, by name. Do not change the dict: it is cached."""
    with torch.device("meta"):
        model = GPT(config, vocab_size)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def matrix_parameters(config: ModelSettings, vocab_size: int, prefix: str = "") -> int:
    """Parameters without norms and biases, in all modules or in those whose name starts with `prefix`."""
    shapes = weight_shapes(config, vocab_size)
    return sum(prod(shape) for name, shape in shapes.items() if name.startswith(prefix) and len(shape) >= 2)


def flops_per_token(config: ModelSettings, vocab_size: int) -> float:
    """Floating-point operations of training on one token: the matrix products, forward and backward.

    Attention counts half of its weights, since the other half is masked, and fewer where a layer has a window.
    `vocab_size` 0 leaves out the output head.
    """
    products = matrix_parameters(config, 1, "h.") + vocab_size * config.n_embd
    keys = sum(_mean_keys(config.block_size, window) for window in config.windows)
    return 6.0 * (products + 2 * keys * config.n_embd)


def _mean_keys(block_size: int, window: int) -> float:
    """How many keys a position sees, on average."""
    if not 0 < window < block_size:
        return block_size / 2
    return window - window * window / (2 * block_size)  # fewer at the start


def inference_memory(config: ModelSettings, vocab_size: int) -> int:
    """Bytes of memory to generate text with a model: weights, RoPE tables, a KV cache of one row, and the logits of one
    position, in float32."""
    numbers = sum(prod(shape) for shape in weight_shapes(config, vocab_size).values())
    rope = config.n_layer * config.block_size * config.head_dim if config.position == "rope" else 0
    kv_cache = 2 * config.n_layer * config.block_size * config.kv_heads * config.head_dim
    return 4 * (numbers + rope + kv_cache + vocab_size)


def block_columns(shape: Shape) -> int:
    """How many columns of a weight share a scale where its optimizer state is in 8 bits: the most, up to 256, that
    divide a row evenly. 0 if the state is in float32: that of vectors, of small matrices, and where blocks would be
    short, as for one factor of a LoRA adapter."""
    if len(shape) < 2 or prod(shape) < _FEWEST:
        return 0
    columns = max(n for n in range(1, min(_BLOCK, shape[1]) + 1) if shape[1] % n == 0)
    return columns if columns >= _SHORTEST_BLOCK else 0


def bytes_saved(config: ModelSettings, vocab_size: int, optimizer_bits: int) -> int:
    """How many bytes AdamW's two moments take less than in float32, by `--optimizer-bits`."""
    if optimizer_bits == 32:
        return 0
    numbers = [(prod(shape), block_columns(shape)) for shape in weight_shapes(config, vocab_size).values()]
    return 2 * sum(3 * n - 4 * n // columns for n, columns in numbers if columns)
