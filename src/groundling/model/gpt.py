"""The transformer, in families that other engines load without custom code.

`gpt2` is GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019): LayerNorm, learned
positions, GELU, biases. `qwen3` is Qwen3 (Qwen3 Technical Report, 2025): RMSNorm, RoPE with QK-norm,
SwiGLU, grouped-query attention, no biases. Without QK-norm, that is a Llama (Touvron et al., 2023) or Mistral, and with
biases for queries, keys and values a Qwen2. All are this one class. The settings choose its modules.

Shapes: B batch, T time, C = n_embd, nh heads, nkv key and value heads, hd head size, V vocabulary.

Read it from the bottom: GPT is a stack of Blocks, and a Block is SelfAttention and an MLP. Each reads a normalized
copy of the residual stream (B, T, C) and adds its result to the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

from groundling.config import ModelSettings
from groundling.model.attention import causal_attention
from groundling.model.cross_entropy import chunked_cross_entropy, cross_entropy, in_chunks
from groundling.model.dropout import Dropout
from groundling.model.kv_cache import KVCache
from groundling.model.packing import Cache, Position
from groundling.model.recompute import recomputed
from groundling.model.rope import RoPE


def _norm(config: ModelSettings) -> nn.Module:
    return (nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm)(config.n_embd, eps=config.epsilon)


class StackedLinear(nn.Linear):
    """Several linear layers of the same input, computed as one matrix product.

    `sizes` are their output sizes, in the order in which they are stacked. The optimizer treats each as a matrix of
    its own, and so do other engines' weight formats.
    """

    def __init__(self, in_features: int, sizes: Sequence[int], bias: bool) -> None:
        super().__init__(in_features, sum(sizes), bias=bias)
        self.sizes = tuple(sizes)
        self.order: torch.Tensor | None = None
        """Which rows they are, if they are in another order: see parallel/tensor.py."""


class SelfAttention(nn.Module):
    """Causal self-attention: each position reads from itself and the positions before it."""

    def __init__(self, config: ModelSettings, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = (config.n_head, config.kv_heads, config.kv_heads)  # of query, key and value
        self.head_dim = config.head_dim
        sizes = [n * config.head_dim for n in self.heads]
        qkv_bias, output_bias, _ = config.biases
        self.c_attn = StackedLinear(config.n_embd, sizes, bias=qkv_bias)
        self.c_proj = nn.Linear(config.n_head * config.head_dim, config.n_embd, bias=output_bias)
        self.rope = RoPE(config) if config.position == "rope" else None
        self.window = config.windows[layer]

    def forward(self, x: torch.Tensor, position: Position | None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C). With a `position`, the tokens in its cache come before."""
        q, k, v = self.qkv(x, position)
        mask = None
        if position is not None:
            (k, v), mask = position.store(self.layer, k, v), position.mask(self.window)
        y = causal_attention(q, k, v, mask, self.window)  # (B, nh, T, hd)
        return self.c_proj(y.transpose(1, 2).flatten(2))

    def qkv(self, x: torch.Tensor, position: Position | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, C) -> queries (B, nh, T, hd), keys and values (B, nkv, T, hd)."""
        B, T, _ = x.shape
        heads = self.c_attn(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, nh + 2 nkv, T, hd)
        q, k, v = heads.split(self.heads, dim=1)
        if self.rope is not None:
            q, k = self.rope(q, k, position)
        return q, k, v


class GeluMLP(nn.Module):
    """Two linear layers and an activation, applied to each position separately."""

    def __init__(self, config: ModelSettings) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.n_hidden, bias=config.biases[2])
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.biases[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # GPT-2 uses the tanh form


class SwigluMLP(nn.Module):
    """An MLP with a gated activation (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    def __init__(self, config: ModelSettings) -> None:
        super().__init__()
        self.c_fc = StackedLinear(config.n_embd, [config.n_hidden] * 2, bias=config.biases[2])  # gate and value
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.biases[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.c_fc(x).chunk(2, dim=-1)
        return self.c_proj(F.silu(gate) * value)


class Block(nn.Module):
    recompute: Literal["none", "attention", "blocks"] = "none"
    """What the backward pass computes again. The `Learner` sets it."""

    def __init__(self, config: ModelSettings, layer: int) -> None:
        super().__init__()
        self.ln_1 = _norm(config)
        self.attn = SelfAttention(config, layer)
        self.ln_2 = _norm(config)
        self.mlp = SwigluMLP(config) if config.mlp == "swiglu" else GeluMLP(config)
        self.drop = Dropout(config.dropout)

    def forward(self, x: torch.Tensor, position: Position | None = None) -> torch.Tensor:
        if self.recompute == "attention":
            attended = recomputed(nn.Module.__call__, self.attn, self.ln_1(x), position)
        else:
            attended = self.attn(self.ln_1(x), position)
        x = x + self.drop(attended)
        return x + self.drop(self.mlp(self.ln_2(x)))


PartRunner = Callable[..., torch.Tensor]
"""Calls a part of the model: `runner(part, *arguments)`. See `GPT.forward`."""


def _run(part: Callable[..., torch.Tensor], module: nn.Module, *arguments: Any) -> torch.Tensor:
    # A block is called as PyTorch calls modules, so that hooks can gather its weights (parallel/data_parallel.py).
    return module(*arguments) if part == Block.forward else part(module, *arguments)


class GPT(nn.Module):
    """Tokens in, logits out, or their loss. Other losses are in `tasks`, sampling is in `inference`."""

    def __init__(self, config: ModelSettings, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.wte = nn.Embedding(vocab_size, config.n_embd)  # token embedding
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        self.drop = Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = _norm(config)
        self.lm_head = None if config.tie_head else nn.Linear(config.n_embd, vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's initialization: N(0, 0.02), divided by √(2 n_layer) where a residual branch ends."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.ones_(parameter)  # ones: norm weights
            else:
                branches = 2 * self.config.n_layer if name.endswith("c_proj.weight") else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(branches))

    def forward(
        self, tokens: torch.Tensor, cache: Cache | None = None, run: PartRunner = _run,
        targets: torch.Tensor | None = None, weights: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Logits for the token after each position, or the loss of the `targets`.

        Args:
            tokens: (B, T) int64.
            cache: its rows hold the tokens before those of `tokens`. It is extended by them. Or `PackedRows`: each row
                of `tokens` is several documents.
            run: calls each part below with its arguments. A compiled model passes a `run` that compiles the parts, and
                a trace passes one that records their outputs.
            targets: (B, T) int64, the tokens after each position.
            weights: (B, T), what each target counts in the mean. Default: the same.

        Returns: (B, T, V), or with `targets` their mean cross-entropy in nats, a scalar in float32
        Raises: ValueError if `tokens` has another shape or does not fit into the context.
        """
        return self.head(self.hidden(tokens, cache, run), run, targets, weights)

    def head(
        self, x: torch.Tensor, run: PartRunner = _run,
        targets: torch.Tensor | None = None, weights: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The rest of `forward`, for the residual stream (B, T, C)."""
        if targets is None:
            return run(GPT.unembed, self, x)
        if in_chunks(x, self.output_weight):
            return run(GPT.chunked_loss, self, x, targets, weights)
        return cross_entropy(run(GPT.unembed, self, x), targets, weights)

    def hidden(self, tokens: torch.Tensor, cache: Cache | None = None, run: PartRunner = _run) -> torch.Tensor:
        """`forward` up to the last block: the residual stream, (B, T, C). Prefill needs no more than this."""
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(
                f"GPT takes token ids of shape (batch, time), but got {tokens.dtype} {tuple(tokens.shape)}."
            )
        T = tokens.size(1)
        if self.config.block_size < T:
            raise ValueError(
                f"{T} tokens do not fit into this model's context of {self.config.block_size} (block_size)."
            )
        position = None if cache is None else cache.next_position(T)
        # The lookup is never compiled: the gradient that Inductor generates for it adds up in a random order on
        # several threads, and a run would not repeat to the bit.
        x = run(GPT.add_positions, self, self.wte(tokens), position)
        block_forward = partial(run, Block.forward)
        for block in self.blocks:
            if block.recompute == "blocks":
                x = recomputed(block_forward, block, x, position)
            else:
                x = block_forward(block, x, position)
        if cache is not None:
            cache.advance(T)
        return x

    def add_positions(self, x: torch.Tensor, position: Position | None = None) -> torch.Tensor:
        """Token embeddings (B, T, C) -> the residual stream that the first block reads, (B, T, C)."""
        if self.wpe is not None:
            positions = slice(x.size(1)) if position is None else position.positions
            x = x + self.wpe(torch.arange(self.config.block_size, device=x.device)[positions])
        return self.drop(x)

    def unembed(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream (B, T, C) -> logits (B, T, V)."""
        x = self.ln_f(x)
        return F.linear(x, self.wte.weight) if self.lm_head is None else self.lm_head(x)

    def chunked_loss(self, x: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """The loss of `forward` from the residual stream (B, T, C), without all logits at once."""
        return chunked_cross_entropy(self.ln_f(x), self.output_weight, targets, weights)

    @property
    def output_weight(self) -> torch.Tensor:
        """The matrix of the output head, (V, C)."""
        return (self.wte if self.lm_head is None else self.lm_head).weight

    @property
    def blocks(self) -> list[Block]:
        return [block for block in self.h if isinstance(block, Block)]  # ModuleList has no element type

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    def new_cache(self, batch_size: int = 1, capacity: int | None = None) -> KVCache:
        """An empty cache with `capacity` positions in each row. Default: the model's context."""
        capacity = self.config.block_size if capacity is None else capacity
        return KVCache(self.config, batch_size, capacity, self.device, self.wte.weight.dtype)

    def parameter_table(self) -> list[tuple[str, int]]:
        """Parameter counts by part. They add up to the total; a tied head counts 0."""
        V, N, C, n = self.vocab_size, self.config.block_size, self.config.n_embd, self.config.n_layer
        parts = [
            (f"token embedding ({V} × {C})", "wte."),
            (f"position embedding ({N} × {C})", "wpe."),
            (f"attention ({n} layers)", ".attn."),
            (f"MLP ({n} layers)", ".mlp."),
            (f"norms ({2 * n + 1})", "ln_"),
            ("output head" + (" (shares the token embedding)" if self.lm_head is None else ""), "lm_head."),
        ]
        if self.wpe is None:
            del parts[1]
        sizes = [(name, p.numel()) for name, p in self.named_parameters()]
        return [(label, sum(size for name, size in sizes if part in name)) for label, part in parts]
