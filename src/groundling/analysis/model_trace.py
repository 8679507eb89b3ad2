"""What goes on in a model while it reads a text: where it looks, what it would say at each layer, who is alike.

The model's fused attention never writes its weights out, so they are computed again here, from the residual stream
that a forward pass leaves behind. The model itself is not touched, and is as fast as without this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from groundling.model.gpt import GPT, Block


class ModelTrace:
    """A text as a model reads it.

    Shapes: T tokens of the text, C = n_embd, nh heads, V vocabulary, L layers.
    """

    @torch.inference_mode()
    def __init__(self, model: GPT, tokens: Sequence[int]) -> None:
        """Raises ValueError if there are no `tokens` (ids), or more than the context holds."""
        if not tokens:
            raise ValueError("There is nothing to read: give at least one token.")
        self.model, self.tokens = model.eval(), list(tokens)
        self.streams: list[torch.Tensor] = []
        """The residual stream, (T, C): as the embedding makes it, and after each of the L blocks."""

        def run(part: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
            result = part(*arguments)
            if part is not GPT.unembed:
                self.streams.append(result[0])
            return result

        model(torch.tensor([self.tokens], device=model.device), run=run)

    @torch.inference_mode()
    def attention(self, layer: int) -> torch.Tensor:
        """Who looks at whom in a layer, counted from 0: (nh, T, T), where row t holds the weights that position t gives
        to the positions up to its own, which add up to 1."""
        block: Block = self.model.blocks[layer]
        heads, hd = block.attn.heads, block.attn.head_dim
        x = block.ln_1(self.streams[layer])[None]
        qkv = block.attn.c_attn(x).view(1, len(self.tokens), -1, hd).transpose(1, 2)
        q, k, _ = qkv.split(heads, dim=1)
        q, k = block.attn.rope(q, k, None)
        k = k.repeat_interleave(heads[0] // heads[1], dim=1)  # where queries share one
        scores = (q @ k.mT)[0].float() / math.sqrt(hd)
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -math.inf).softmax(-1).cpu()

    @torch.inference_mode()
    def probabilities(self, layer: int) -> torch.Tensor:
        """What the model would expect next if it ended after so many layers, (T, V): after 0 it has the embedding only,
        and after all L it is the model's own answer.

        This is the logit lens (nostalgebraist, "interpreting GPT: the logit lens", 2020): the output head reads the
        stream as it stands. Early layers do not speak the head's language, so their guesses are rough.
        """
        return self.model.unembed(self.streams[layer]).float().softmax(-1).cpu()


@torch.inference_mode()
def neighbours(model: GPT, token: int, n: int = 10) -> list[tuple[int, float]]:
    """The tokens whose embeddings point most nearly the same way as that of `token`, with the cosine of the angle, from
    the nearest on. Of tokens that never occurred in training the embedding says nothing."""
    vectors = torch.nn.functional.normalize(model.wte.weight.float(), dim=-1)
    cosines = vectors @ vectors[token]
    cosines[token] = -math.inf
    nearest = cosines.topk(min(n, len(cosines) - 1))
    return list(zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True))
