"""Look inside a model while it reads a text: attention weights, logit lens, and similar tokens.

The model's fused attention does not return its weights, so they are computed again here, from the residual stream of a
forward pass. The model itself stays as it is, and as fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from groundling.model.gpt import GPT, Block


class ModelTrace:
    """One forward pass over a text. Shapes: T tokens of the text, C = n_embd, nh heads, V vocabulary, L layers."""

    @torch.inference_mode()
    def __init__(self, model: GPT, tokens: Sequence[int]) -> None:
        """`tokens` are ids. Raises ValueError if there are none, or more than the context holds."""
        if not tokens:
            raise ValueError("There is nothing to read: give at least one token.")
        self.model, self.tokens = model.eval(), list(tokens)
        self.streams: list[torch.Tensor] = []
        """The residual stream (T, C) after the embedding, and after each of the L blocks."""

        def run(part: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
            result = part(*arguments)
            if part is not GPT.unembed:
                self.streams.append(result[0])
            return result

        model(torch.tensor([self.tokens], device=model.device), run=run)

    @torch.inference_mode()
    def attention(self, layer: int) -> torch.Tensor:
        """The attention weights of a layer, counted from 0: (nh, T, T). Row t has the weights of position t for the
        positions up to t that it sees, with sum 1."""
        block: Block = self.model.blocks[layer]
        q, k, _ = block.attn.qkv(block.ln_1(self.streams[layer])[None])
        k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)  # for grouped queries
        scores = (q @ k.mT)[0].float() / math.sqrt(q.size(-1))
        seen = torch.ones_like(scores, dtype=torch.bool).tril()
        if block.attn.window:
            seen = seen.triu(1 - block.attn.window)
        return scores.masked_fill(~seen, -math.inf).softmax(-1).cpu()

    @torch.inference_mode()
    def probabilities(self, layer: int) -> torch.Tensor:
        """Logit lens: the next-token probabilities (T, V) after `layer` layers, from 0 (only the embedding) to L.

        The output head reads the residual stream as it is there (nostalgebraist, "interpreting GPT: the logit lens",
        2020). Early layers do not use the head's representation yet, so their predictions are rough.
        """
        return self.model.unembed(self.streams[layer]).float().softmax(-1).cpu()


@torch.inference_mode()
def neighbours(model: GPT, token: int, n: int = 10) -> list[tuple[int, float]]:
    """The `n` tokens with the embeddings most similar to that of `token`, with cosine similarity, most similar first.
    The embedding of a token that never occurred in training means nothing."""
    vectors = torch.nn.functional.normalize(model.wte.weight.float(), dim=-1)
    cosines = vectors @ vectors[token]
    cosines[token] = -math.inf
    nearest = cosines.topk(min(n, len(cosines) - 1))
    return list(zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True))
