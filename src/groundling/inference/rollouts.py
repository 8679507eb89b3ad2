"""Rollouts: many short texts at once from one model, for reinforcement learning and for scoring answers.

The engine serves texts that come and go, each with its own settings. Here all texts start together and grow by one
token a step, so a step is a few large matrix products, and Python touches a text only when it ends:

- Each distinct prompt is read once, and its keys and values are copied to the rows of all its samples.
- Prompts are aligned at their ends. Then all rows write to the same slot of the cache, and a mask hides the slots
  before a row's first token.
- Rows that ended are dropped as soon as they are a quarter of all.

The result is a pure function of weights, prompts, seeds and settings. Each draw takes a random number that depends only
on the row's seed and on how many tokens the row has. So a row draws the same alone and in company, up to the last
digits of its logits: they depend on the number of rows in a product.

Shapes: B rows, P the longest prompt, S slots in use, V vocabulary; C, nh, nkv and hd as in `model.gpt`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn as nn
import torch.nn.functional as F

from groundling.data.hashing import mix
from groundling.model.gpt import GPT, SelfAttention
from groundling.model.kv_cache import CachePosition, KVCache

_Ids = npt.NDArray[np.int64]
_F64 = npt.NDArray[np.float64]

Respond = Callable[[list[int]], Sequence[int] | None]
"""The new tokens of a text, up to an end token -> tokens that follow (a tool's result), or None: the text ends."""

_GROWTH = 16  # slots
_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step


@dataclass(frozen=True)
class Rollout:
    """A prompt and what followed it. Lists are parallel to `tokens`, which include the end token."""

    prompt: list[int]
    tokens: list[int]
    sampled: list[bool]
    """False where a token was given by `respond` instead of drawn."""
    logprobs: list[float]
    """Of each token in nats, in the distribution that it was drawn from; 0 where not sampled. At temperature 0: the
    model's own."""
    finish: Literal["end", "length"]


@torch.inference_mode()
def sample_rollouts(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    max_new_tokens: int,
    end_ids: Collection[int],
    temperature: float = 1.0,
    respond: Respond | None = None,
    on_token: Callable[[], object] = lambda: None,
) -> list[Rollout]:
    """Continue each prompt with its own seed, all at once, up to `max_new_tokens` or one of `end_ids`.

    Call it under `machine.autocast()` to multiply in the same precision as training. It never changes `model`.
    `temperature` divides the logits; 0 always takes the most likely token. After an end token, `respond` may give
    tokens to go on with. They count as new tokens, too. `on_token` is called before each token; what it raises ends the
    work.

    Raises ValueError if a prompt is empty, or does not fit into the context with `max_new_tokens`.
    """
    _check(model, prompts, seeds, max_new_tokens, temperature)
    if not prompts:
        return []
    B = len(prompts)
    decoder = _Decoder(model, prompts)
    uniform = _uniform(seeds, max_new_tokens)
    is_end = np.isin(np.arange(model.vocab_size), list(end_ids))
    new = np.zeros((B, max_new_tokens), dtype=np.int64)
    sampled = np.ones(new.shape, dtype=bool)
    logprobs = np.zeros(new.shape)
    lengths, ended = np.full(B, max_new_tokens), np.zeros(B, dtype=bool)
    rows = np.arange(B)  # in the decoder's order
    tokens = np.array([prompt[-1] for prompt in prompts])
    for t in range(max_new_tokens):
        on_token()
        drawn, nats = _draw(decoder.step(tokens), temperature, uniform[rows, t])
        own = sampled[rows, t]
        tokens = new[rows, t] = np.where(own, drawn, new[rows, t])
        logprobs[rows, t] = np.where(own, nats, 0)
        for row in rows[own & is_end[tokens] & ~ended[rows]].tolist():
            given = respond(new[row, : t + 1].tolist()) if respond else None
            if given is None:
                lengths[row], ended[row] = t + 1, True
            else:
                forced = slice(t + 1, min(t + 1 + len(given), max_new_tokens))
                new[row, forced], sampled[row, forced] = given[: forced.stop - forced.start], False
        if ended.all():
            break
        if ended[rows].mean() >= 0.25:
            order = decoder.keep(np.flatnonzero(~ended[rows]))
            rows, tokens = rows[order], tokens[order]
    rollouts = []
    for row, n in enumerate(lengths.tolist()):
        parts = new[row, :n].tolist(), sampled[row, :n].tolist(), logprobs[row, :n].tolist()
        rollouts.append(Rollout(list(prompts[row]), *parts, finish="end" if ended[row] else "length"))
    return rollouts


def _check(
    model: GPT, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_new_tokens: int, temperature: float
) -> None:
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    if not (0 <= temperature < math.inf):
        raise ValueError(f"temperature must be 0 or more, not {temperature}.")
    if not all(map(len, prompts)):
        raise ValueError("A prompt is empty: give at least one token.")
    longest, size = max(map(len, prompts), default=0), model.config.block_size
    if prompts and longest + max_new_tokens > size:
        raise ValueError(
            f"A prompt of {longest} tokens and {max_new_tokens} new ones (max_new_tokens) do not fit into the model's "
            f"context of {size} (block_size)."
        )


def _uniform(seeds: Sequence[int], count: int) -> _F64:
    """Random numbers in [0, 1), (len(seeds), count): for each seed, those of SplitMix64 from the seed's hash on."""
    start = mix(np.array([int(seed) % 2**64 for seed in seeds], dtype=np.uint64) + _GAMMA)
    bits = mix(start[:, None] + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)


def _draw(logits: torch.Tensor, temperature: float, uniform: _F64) -> tuple[_Ids, _F64]:
    """The next token of each row and its log probability: logits (B, V) and a random number in [0, 1) for each row."""
    nats = (logits / (temperature or 1)).log_softmax(-1)
    if temperature:
        sums = nats.exp().cumsum(-1, dtype=torch.float64)
        targets = sums[:, -1:] * torch.from_numpy(uniform)[:, None]
        drawn = torch.searchsorted(sums, targets, right=True)  # the first token with a sum beyond the target
        drawn.clamp_(max=nats.size(1) - 1)  # where logits are not a number
    else:
        drawn = torch.from_numpy(nats.numpy().argmax(-1, keepdims=True))
    return drawn[:, 0].numpy(), nats.gather(1, drawn)[:, 0].double().numpy()


class _Position(CachePosition):
    """The positions of the rows' newest tokens, (B, 1): what embeddings and RoPE ask for."""

    def __init__(self, positions: torch.Tensor) -> None:
        self.positions = positions


class _Decoder:
    """`GPT.forward` for one new token in each row, all in the same slot of the cache.

    The model's own parts do the work, except for attention. For one query, PyTorch's fused kernel is several times
    slower than two batched products with keys stored as (hd, S) and values as (S, hd). These products would copy a
    part of a cache, so the cache is only as large as needed and grows by a few slots at a time.
    """

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]]) -> None:
        c, device = model.config, model.device
        dtype = model.wte.weight.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        self._model = _with_matrices_in(dtype, model)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._slot = int(lengths.max()) - 1  # the next one, for the last tokens of the prompts
        self._first = self._slot + 1 - lengths  # each row's first slot in use
        slots = torch.arange(self._slot, device=device)
        self._mask = torch.zeros(len(prompts), self._slot, device=device)  # (B, S), added to scores; float32
        self._mask.masked_fill_(slots < self._first[:, None], -math.inf)
        shape = (c.n_layer, len(prompts), c.kv_heads, c.head_dim, self._slot)
        self._keys = torch.zeros(shape, device=device, dtype=dtype)  # (layer, B, nkv, hd, S)
        self._values = torch.zeros_like(self._keys.mT, memory_format=torch.contiguous_format)
        if self._slot:
            self._prefill(prompts)

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read each distinct prompt without its last token, and copy keys and values to its rows."""
        device, P = self._first.device, self._slot
        numbers: dict[tuple[int, ...], int] = {}
        source = torch.tensor([numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts], device=device)
        padded = torch.tensor([(*prompt[:-1], *[0] * (P + 1 - len(prompt))) for prompt in numbers], device=device)
        cache = KVCache(self._model.config, len(numbers), P, device, self._keys.dtype)
        self._model.hidden(padded, cache)  # causal: padding after a prompt changes nothing in it
        for first in self._first.unique().tolist():
            rows = (self._first == first).nonzero()[:, 0]
            self._keys[:, rows, :, :, first:] = cache.keys[:, source[rows], :, : P - first].mT
            self._values[:, rows, :, first:] = cache.values[:, source[rows], :, : P - first]

    def step(self, tokens: _Ids) -> torch.Tensor:
        """Read the next token of each row, (B,). Returns logits in float32 on the CPU, (B, V)."""
        if self._slot == self._mask.size(1):
            self._keys, self._values = F.pad(self._keys, (0, _GROWTH)), F.pad(self._values, (0, 0, 0, _GROWTH))
            self._mask = F.pad(self._mask, (0, _GROWTH), value=-math.inf)
        self._mask[:, self._slot] = 0
        position = _Position((self._slot - self._first)[:, None])
        x = self._model.wte(torch.from_numpy(tokens).to(self._first.device)[:, None])  # (B, 1, C)
        x = self._model.add_positions(x, position)
        for layer, block in enumerate(self._model.blocks):
            x = x + self._attend(layer, block.attn, block.ln_1(x), position)
            x = x + block.mlp(block.ln_2(x))
        self._slot += 1
        return self._model.unembed(x)[:, 0].float().cpu()

    def _attend(self, layer: int, attn: SelfAttention, x: torch.Tensor, position: CachePosition) -> torch.Tensor:
        """`SelfAttention.forward` for (B, 1, C)."""
        q, k, v = attn.qkv(x, position)  # (B, nh or nkv, 1, hd)
        B, nkv, _, hd = k.shape
        keys, values = self._keys[layer], self._values[layer]
        keys[..., self._slot], values[..., self._slot, :] = k[:, :, 0], v[:, :, 0]
        first = max(self._slot + 1 - attn.window, 0) if attn.window else 0
        keys, values = keys[..., first:], values[..., first:, :]
        q = q.reshape(B * nkv, -1, hd) * hd**-0.5  # queries that share a key head are neighbours
        scores = torch.bmm(q, keys.flatten(0, 1)).view(B, -1, keys.size(3)) + self._mask[:, None, first:]
        weights = scores.softmax(-1).to(q.dtype).view(B * nkv, -1, keys.size(3))
        return attn.c_proj(torch.bmm(weights, values.flatten(0, 1)).view(B, 1, -1))

    def keep(self, places: _Ids) -> _Ids:
        """Drop all rows but those in `places`. Returns the old places of the kept rows, in their new order."""
        n, device = len(places), self._first.device
        order = np.arange(n)
        gaps = np.setdiff1d(order, places)
        order[gaps] = places[n - len(gaps) :]  # the last rows move into the gaps
        to, old, source = (torch.from_numpy(part).to(device) for part in (gaps, order, order[gaps]))
        for cache in (self._keys, self._values):
            cache[:, to] = cache[:, source]
        self._keys, self._values = self._keys[:, :n], self._values[:, :n]
        self._first, self._mask = self._first[old], self._mask[old]
        return order


def _with_matrices_in(dtype: torch.dtype, model: GPT) -> GPT:
    """A copy of `model` for inference, with linear layers in `dtype` as autocast would use them. The rest is shared."""
    shared = {id(p): p for p in model.parameters()}
    if dtype != model.wte.weight.dtype:
        linear = [p for part in model.modules() if isinstance(part, nn.Linear) for p in part.parameters()]
        shared |= {id(p): nn.Parameter(p.to(dtype), requires_grad=False) for p in linear}
    copied = copy.deepcopy(model, memo=dict(shared)).eval()  # what `memo` has is not copied
    if model.lm_head is None and dtype != model.wte.weight.dtype:
        copied.lm_head = nn.Linear(1, 1, bias=False, device="meta")
        copied.lm_head.weight = nn.Parameter(model.wte.weight.to(dtype), requires_grad=False)
    return copied
