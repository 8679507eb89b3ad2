"""The transformer: GPT-2, at any size.

Shapes: B batch, T time, C = n_embd, nh heads, hd = C / nh head size, V vocabulary.

Read it from the bottom: GPT is a stack of Blocks, a Block is SelfAttention and an MLP, each of which
reads a normalized copy of the residual stream (B, T, C) and adds its finding to it.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from groundling.config import ModelSettings
from groundling.model.attention import attend
from groundling.model.cache import KVCache


class SelfAttention(nn.Module):
    """Each position gathers from itself and earlier ones: communication."""

    def __init__(self, config: ModelSettings, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
        B, T, C = x.shape
        # (B, T, 3C) -> three of (B, nh, T, hd)
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        y = attend(q, k, v)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Each position works on what it has: computation."""

    def __init__(self, config: ModelSettings) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # GPT-2 uses the tanh form


class Block(nn.Module):
    def __init__(self, config: ModelSettings, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = SelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
        x = x + self.drop(self.attn(self.ln_1(x), cache))
        return x + self.drop(self.mlp(self.ln_2(x)))


class GPT(nn.Module):
    """Tokens in, logits out. The loss lives in the objective, sampling in `inference`."""

    def __init__(self, config: ModelSettings, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.wte = nn.Embedding(vocab_size, config.n_embd)  # token embedding
        self.wpe = nn.Embedding(config.block_size, config.n_embd)  # position embedding
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = None if config.tie_head else nn.Linear(config.n_embd, vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), and less where a residual branch ends, by the number of branches."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.ones_(parameter) if "ln_" in name and name.endswith("weight") else nn.init.zeros_(parameter)
            else:
                branches = 2 * self.config.n_layer if name.endswith("c_proj.weight") else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(branches))

    def forward(self, tokens: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Logits for the token after each position.

        Args:
            tokens: (B, T) int64.
            cache: what it holds stands before `tokens`; it is filled further.

        Returns: (B, T, V)
        Raises: ValueError if `tokens` has another shape, or does not fit into the context.
        """
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(
                f"GPT takes token ids of shape (batch, time), and got {tokens.dtype} {tuple(tokens.shape)}."
            )
        T, past = tokens.size(1), cache.length if cache is not None else 0
        if past + T > self.config.block_size:
            raise ValueError(
                f"{past + T} tokens do not fit into this model's context of {self.config.block_size} (block_size)."
            )
        positions = torch.arange(past, past + T, device=tokens.device)
        x = self.drop(self.wte(tokens) + self.wpe(positions))  # (B, T, C)
        for block in self.h:
            x = block(x, cache)
        if cache is not None:
            cache.advance(T)
        x = self.ln_f(x)
        return F.linear(x, self.wte.weight) if self.lm_head is None else self.lm_head(x)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    def new_cache(self, batch_size: int = 1) -> KVCache:
        return KVCache(self.config, batch_size, self.device, self.wte.weight.dtype)

    def parameter_table(self) -> list[tuple[str, int]]:
        """Parameters part by part; they add up to all. A tied head has none of its own."""

        def count(*modules: nn.Module | None) -> int:
            return sum(p.numel() for module in modules if module is not None for p in module.parameters())

        blocks = [block for block in self.h if isinstance(block, Block)]
        n = len(blocks)
        return [
            (f"token embedding ({self.vocab_size} × {self.config.n_embd})", count(self.wte)),
            (f"position embedding ({self.config.block_size} × {self.config.n_embd})", count(self.wpe)),
            (f"attention ({n} layers)", count(*(block.attn for block in blocks))),
            (f"MLP ({n} layers)", count(*(block.mlp for block in blocks))),
            (f"layer norms ({2 * n + 1})", count(self.ln_f, *(m for b in blocks for m in (b.ln_1, b.ln_2)))),
            (
                "output head (tied to the token embedding)" if self.lm_head is None else "output head",
                count(self.lm_head),
            ),
        ]
