"""The transformer, in two families that other engines load as they are.

`gpt2` is GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019): LayerNorm, learned
positions, GELU, biases. `modern` is what Qwen3 computes (Qwen3 Technical Report, 2025): RMSNorm, rotary positions
on normalized queries and keys, SwiGLU, grouped-query attention, no biases. Both are this one class: the choices
`norm`, `position`, `mlp` and `tie_head` decide which modules it is built from.

Shapes: B batch, T time, C = n_embd, nh heads, nkv key and value heads, hd head size (C / nh if
nothing else is said), V vocabulary.

Read it from the bottom: GPT is a stack of Blocks, a Block is SelfAttention and an MLP, each of which reads a
normalized copy of the residual stream (B, T, C) and adds its finding to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from groundling.config import ModelSettings
from groundling.model.attention import attend
from groundling.model.dropout import Dropout
from groundling.model.kv_cache import KVCache, Place

_EPS = 1e-6  # Qwen3's, for RMSNorm


def _norm(config: ModelSettings) -> nn.Module:
    return nn.RMSNorm(config.n_embd, eps=_EPS) if config.norm == "rmsnorm" else nn.LayerNorm(config.n_embd)


class Rotary(nn.Module):
    """Positions as rotations (Su et al., "RoFormer", 2021) of queries and keys that are normalized before.

    A query and a key, turned by angles that grow with their positions, meet at an angle that depends on the
    distance between them alone.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: ModelSettings) -> None:
        super().__init__()
        hd = config.head_dim
        self.q_norm = nn.RMSNorm(hd, eps=_EPS)
        self.k_norm = nn.RMSNorm(hd, eps=_EPS)
        speeds = config.rope_theta ** (-torch.arange(0, hd, 2, dtype=torch.float64) / hd)
        angles = torch.outer(torch.arange(config.block_size, dtype=torch.float64), speeds)
        self.register_buffer("cos", angles.cos().float(), persistent=False)  # (block_size, hd / 2)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, q: torch.Tensor, k: torch.Tensor, place: Place | None) -> tuple[torch.Tensor, torch.Tensor]:
        """q (B, nh, T, hd) and k (B, nkv, T, hd) at `place`, the beginning if None, normalized and turned."""
        positions = slice(q.size(2)) if place is None else place.positions
        cos, sin = self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)  # (B or 1, 1, T, hd / 2)
        return self._turn(self.q_norm, q, cos, sin), self._turn(self.k_norm, k, cos, sin)

    @staticmethod
    def _turn(norm: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        # In float32, as Qwen3 does: norms and angles are where bfloat16 would be felt.
        # Pairs are (i, i + hd/2), as in transformers, not neighbours, as in the paper: a matter of order alone.
        a, b = norm(x.float()).chunk(2, dim=-1)
        return torch.cat(((a * cos - b * sin).type_as(x), (b * cos + a * sin).type_as(x)), dim=-1)


class Unturned(nn.Module):
    """For positions that were learned and added to the tokens: nothing is left to do."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, place: Place | None) -> tuple[torch.Tensor, torch.Tensor]:
        return q, k


class SelfAttention(nn.Module):
    """Each position gathers from itself and earlier ones: communication."""

    def __init__(self, config: ModelSettings, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = (config.n_head, config.kv_heads, config.kv_heads)  # of query, key and value
        self.head_dim = config.head_dim
        # Query, key and value in one product.
        self.c_attn = nn.Linear(config.n_embd, sum(self.heads) * self.head_dim, bias=config.has_biases)
        self.c_proj = nn.Linear(config.n_head * self.head_dim, config.n_embd, bias=config.has_biases)
        self.turn = Rotary(config) if config.position == "rope" else Unturned()

    def forward(self, x: torch.Tensor, place: Place | None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C); with a place, after what its cache holds."""
        B, T, _ = x.shape
        qkv = self.c_attn(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, nh + 2 nkv, T, hd)
        q, k, v = qkv.split(self.heads, dim=1)
        q, k = self.turn(q, k, place)
        visible = None
        if place is not None:
            (k, v), visible = place.store(self.layer, k, v), place.visible
        y = attend(q, k, v, visible)  # (B, nh, T, hd)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, -1))


class GeluMLP(nn.Module):
    """Each position works on what it has: computation."""

    def __init__(self, config: ModelSettings) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.n_hidden, bias=config.has_biases)
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.has_biases)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # GPT-2 uses the tanh form


class SwigluMLP(nn.Module):
    """The same, with a gate on what passes (Shazeer, "GLU Variants Improve Transformer", 2020)."""

    def __init__(self, config: ModelSettings) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 2 * config.n_hidden, bias=config.has_biases)  # gate and value
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.has_biases)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.c_fc(x).chunk(2, dim=-1)
        return self.c_proj(F.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, config: ModelSettings, layer: int) -> None:
        super().__init__()
        self.ln_1 = _norm(config)
        self.attn = SelfAttention(config, layer)
        self.ln_2 = _norm(config)
        self.mlp = SwigluMLP(config) if config.mlp == "swiglu" else GeluMLP(config)
        self.drop = Dropout(config.dropout)

    def forward(self, x: torch.Tensor, place: Place | None = None) -> torch.Tensor:
        x = x + self.drop(self.attn(self.ln_1(x), place))
        return x + self.drop(self.mlp(self.ln_2(x)))


def _call(part: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    return part(*arguments)


class GPT(nn.Module):
    """Tokens in, logits out. The loss lives in the objective, sampling in `inference`."""

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
        """GPT-2's initialisation: N(0, 0.02), and less where a residual branch ends, by the number of branches."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.ones_(parameter)  # ones: of norms
            else:
                branches = 2 * self.config.n_layer if name.endswith("c_proj.weight") else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(branches))

    def forward(
        self,
        tokens: torch.Tensor,
        cache: KVCache | None = None,
        through: Callable[..., torch.Tensor] = _call,
    ) -> torch.Tensor:
        """Logits for the token after each position.

        Args:
            tokens: (B, T) int64.
            cache: what its rows hold stands before those of `tokens`; it is filled further.
            through: calls each of the parts below, given the part and its arguments; where the model is compiled, it
                calls the compiled part.

        Returns: (B, T, V)
        Raises: ValueError if `tokens` has another shape, or does not fit into the context.
        """
        return through(GPT.unembed, self, self.hidden(tokens, cache, through))

    def hidden(
        self,
        tokens: torch.Tensor,
        cache: KVCache | None = None,
        through: Callable[..., torch.Tensor] = _call,
    ) -> torch.Tensor:
        """`forward` up to the last block: the residual stream, (B, T, C). Reading a prompt needs no more."""
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(
                f"GPT takes token ids of shape (batch, time), and got {tokens.dtype} {tuple(tokens.shape)}."
            )
        T = tokens.size(1)
        if self.config.block_size < T:
            raise ValueError(
                f"{T} tokens do not fit into this model's context of {self.config.block_size} (block_size)."
            )
        place = None if cache is None else cache.place(T)
        x = through(GPT.embed, self, tokens, place)
        for block in self.blocks:
            x = through(Block.forward, block, x, place)
        if cache is not None:
            cache.advance(T)
        return x

    def embed(self, tokens: torch.Tensor, place: Place | None = None) -> torch.Tensor:
        """Token ids (B, T) at `place`, the beginning if None -> the residual stream, (B, T, C)."""
        x = self.wte(tokens)
        if self.wpe is not None and place is None:
            x = x + self.wpe(torch.arange(tokens.size(1), device=tokens.device))
        elif self.wpe is not None and place is not None:
            x = x + self.wpe.weight[place.positions]
        return self.drop(x)

    def unembed(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream (B, T, C) -> logits (B, T, V)."""
        x = self.ln_f(x)
        return F.linear(x, self.wte.weight) if self.lm_head is None else self.lm_head(x)

    @property
    def blocks(self) -> list[Block]:
        return [block for block in self.h if isinstance(block, Block)]  # ModuleList knows no types

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    def new_cache(self, batch_size: int = 1, capacity: int | None = None) -> KVCache:
        return KVCache(self.config, batch_size, self.device, self.wte.weight.dtype, capacity)

    def parameter_table(self) -> list[tuple[str, int]]:
        """Parameters part by part; they add up to all. A tied head has none of its own."""

        def count(*modules: nn.Module | None) -> int:
            return sum(p.numel() for module in modules if module is not None for p in module.parameters())

        blocks, n = self.blocks, self.config.n_layer
        table = [
            (f"token embedding ({self.vocab_size} × {self.config.n_embd})", count(self.wte)),
            (f"position embedding ({self.config.block_size} × {self.config.n_embd})", count(self.wpe)),
            (f"attention ({n} layers)", count(*(block.attn for block in blocks))),
            (f"MLP ({n} layers)", count(*(block.mlp for block in blocks))),
            (f"norms ({2 * n + 1})", count(self.ln_f, *(m for b in blocks for m in (b.ln_1, b.ln_2)))),
            ("output head" + (" (the token embedding's weights)" if self.lm_head is None else ""), count(self.lm_head)),
        ]
        return [row for row in table if self.wpe is not None or not row[0].startswith("position")]
