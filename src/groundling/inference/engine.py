"""Generation: many texts in one batch, each at its own position. A text can join or leave at any time.

**Texts longer than the context.** A model with context N was trained on windows of N tokens, so it always gets such a
window. Windows begin at tokens 0, S, 2S, ... of a text, with S = N - N // 2. A token is read in the oldest window that
still has room for it. So after the first window, each next token is predicted from N // 2 + 1 to N tokens, at positions
that count from 0. This holds for learned and rotary positions, and for prompt and generated tokens. `window_start`
computes it in one line. A full forward pass over `tokens[window_start(...):]` gives the same logits.

A window starts with the second half of the one before. That half is read for the new window while the old one is still
in use, a few tokens at a time, so there is no pause when a window is full. Moving the window by single tokens would be
worse: with learned positions, each token costs a new pass over all N. With rotary positions, old keys could be kept,
but they depend on tokens that left the window long ago, and the model never saw such keys in training.

**Drafts.** In one pass, the model reads a token and some guesses of what follows, and predicts what comes after each
of them. The engine keeps the token it draws after the first. If the guess was the same, it keeps the next draw too, and
so on. Each draw takes one random number, in the order of the text. So the text is the same with and without drafts,
greedy or sampled, if reading several tokens at once gives the same digits: `NumbaDecoder` gives the same ones, PyTorch
all but the last ones. For guesses without probabilities of their own, this is the acceptance rule of speculative
sampling (Leviathan et al., "Fast inference from transformers via speculative decoding", 2023).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from groundling.config import Sampling
from groundling.inference.ngram_drafter import NgramDrafter
from groundling.inference.sampling import Sampler, choose, log_probabilities
from groundling.inference.speed_selector import SpeedSelector
from groundling.model.gpt import GPT
from groundling.model.kv_cache import KVCache

_CHUNK = 128  # prompt tokens read per step, so that a long prompt does not hold up the other texts
_AHEAD = 64  # tokens read at once for the next window
_DRAFTED = 3  # guesses at once
_MOST = 32  # tokens read at once, guesses included: beyond this, guesses never paid off


@dataclass(frozen=True)
class Request:
    """A prompt to continue, at least one token id.

    Generation ends after `max_new_tokens`, or with one of the tokens `end_ids`. `logprobs` asks for the log
    probability of each new token and of this many most likely ones.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    end_ids: Collection[int] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("The prompt is empty: give at least one token.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs must be 0 or more, not {self.logprobs}.")


@dataclass(frozen=True)
class GeneratedToken:
    """A new token of the text in `slot`. `finish` says why it is the last one; empty if it is not.

    If the request has `logprobs`, `logprob` is the token's log probability in nats, by the model itself (before
    temperature, penalties and top-k, top-p, min-p), and `top` has the most likely tokens with theirs, best first.
    """

    slot: int
    token: int
    finish: Literal["", "length", "end"] = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def window_start(n: int, block_size: int) -> int:
    """The first token of the window in which token `n` of a text is read. Both count from 0."""
    stride = block_size - block_size // 2
    return max(0, -((block_size - 1 - n) // stride)) * stride


class Decoder(Protocol):
    """Computes the model's forward pass for a few tokens. `acceleration` implements it."""

    most: int  # up to this many tokens at once it is faster than the model

    def read(
        self, tokens: Sequence[int], rows: Sequence[int], positions: Sequence[int], cache: KVCache
    ) -> npt.NDArray[np.float32]:
        """Read the tokens into the cache, those of a row in order. Returns logits (n, V). Does not change lengths."""


class _Row:
    """A text being generated, in one row of the caches."""

    def __init__(self, slot: int, request: Request, model: GPT) -> None:
        self.slot, self.request = slot, request
        self.tokens = list(request.prompt)
        self.left = request.max_new_tokens
        self.start = window_start(len(self.tokens) - 1, model.config.block_size)
        self.read = self.start  # the first token that the model has not read
        self.sampler = Sampler(request.sampling, self.tokens, model.vocab_size)

    @property
    def ready(self) -> bool:
        """Whether all tokens but the newest have been read."""
        return self.read == len(self.tokens) - 1


class Engine:
    """Generates up to `slots` texts at once with one model. It allocates its memory once.

    `add` requests, then call `step` repeatedly and collect the tokens. A finished text frees its slot. You can call
    `add` and `free` between any two steps. Do not share an engine between threads.

    `drafter` guesses tokens when that is faster, and learns from the texts. `decoder` replaces the model for few tokens
    at once.
    """

    def __init__(
        self, model: GPT, slots: int = 1, drafter: NgramDrafter | None = None, decoder: Decoder | None = None
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}.")
        self._model, self._drafter, self._selector, self._decoder = model.eval(), drafter, SpeedSelector(), decoder
        N = model.config.block_size
        self._block_size, self._stride = N, N - N // 2
        self._cache = model.new_cache(slots)
        self._ahead = model.new_cache(slots, capacity=max(N // 2, 1))  # the first halves of the next windows
        self._rows: list[_Row] = []  # in the order of the cache rows, without gaps
        self._free = list(range(slots))

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def add(self, request: Request) -> int:
        """Add a text and return its slot. Raises ValueError if no slot is free or a token id is out of range."""
        if not self._free:
            raise ValueError(f"All {len(self._rows)} slots are taken. Free one first.")
        if not 0 <= min(request.prompt) <= max(request.prompt) < self._model.vocab_size:
            raise ValueError(f"Token ids must lie in [0, {self._model.vocab_size}).")
        row = _Row(self._free.pop(0), request, self._model)
        if self._drafter:
            self._drafter.show(row.tokens)
        self._rows.append(row)
        return row.slot

    def free(self, slot: int) -> None:
        """Drop the text in `slot`. Raises ValueError if there is none."""
        i = next((i for i, row in enumerate(self._rows) if row.slot == slot), None)
        if i is None:
            raise ValueError(f"Slot {slot} has no text.")
        last = len(self._rows) - 1
        for cache in (self._cache, self._ahead):
            if i != last:
                cache.copy_row(i, cache, last)
            cache.lengths[last] = 0
        self._rows[i] = self._rows[last]
        self._rows.pop()
        self._free.append(slot)

    @torch.inference_mode()
    def step(self) -> list[GeneratedToken]:
        """Generate one token for each text whose prompt has been read, or several if drafts were right.

        Also read the next chunk of one unread prompt.
        """
        for i, row in enumerate(self._rows):
            self._roll(i, row)
        waiting = next((i for i, row in enumerate(self._rows) if not row.ready), None)
        if waiting is not None:
            self._prefill(waiting)
        new = self._decode() if any(row.ready for row in self._rows) else []
        for item in new:
            if item.finish:
                self.free(item.slot)
        return new

    def _prefill(self, i: int) -> None:
        """Read the next chunk of a prompt, without its last token: `_decode` reads that."""
        row = self._rows[i]
        piece = row.tokens[row.read : min(row.read + _CHUNK, len(row.tokens) - 1)]
        self._model.hidden(self._tensor([piece]), self._cache[i : i + 1])
        row.read += len(piece)

    def _roll(self, i: int, row: _Row) -> None:
        """Read ahead for the next window of a row, and move to it if this one is full."""
        full = row.read == row.start + self._block_size
        ahead = row.start + self._stride + int(self._ahead.lengths[i])  # the first token not yet read ahead
        if ahead < row.read and (full or row.read - ahead >= _AHEAD):
            self._model.hidden(self._tensor([row.tokens[ahead : row.read]]), self._ahead[i : i + 1])
        if full:
            self._cache.copy_row(i, self._ahead, i)
            self._ahead.lengths[i] = 0
            row.start += self._stride

    def _decode(self) -> list[GeneratedToken]:
        """Read the newest token and its drafts in each ready row, and choose the next tokens."""
        began = time.perf_counter()
        rows, lengths = self._rows, self._cache.lengths
        room = self._block_size - 1 - int(lengths[: len(rows)].max())
        most = self._decoder.most if self._decoder else _MOST
        room = min(room, _DRAFTED, most // len(rows) - 1)
        drafter = self._drafter if room > 0 else None
        drafting = drafter is not None and self._selector.takes(len(rows))
        active = [i for i, row in enumerate(rows) if row.ready]
        reading = [row.tokens[-1:] if row.ready else [] for row in rows]
        if drafter and drafting:
            for i in active:
                reading[i] += drafter.draft(rows[i].tokens, min(room, rows[i].left - 1))
        logits = self._read(reading)
        new = []
        for t in range(max(map(len, reading))):
            chosen = choose(np.array([logits[i][t] for i in active]), [rows[i].sampler for i in active])
            right = []
            for i, token in zip(active, chosen, strict=True):
                item = self._append(rows[i], token, logits[i][t])
                lengths[i] += 1
                new.append(item)
                if reading[i][t + 1 : t + 2] == [token] and not item.finish:
                    right.append(i)
            if not right:
                break
            active = right
        if drafter:
            self._selector.record(len(rows), drafting, (time.perf_counter() - began) / len(new))
        return new

    def _read(self, tokens: list[list[int]]) -> Sequence[npt.NDArray[np.float32]]:
        """Read these tokens of each row. Returns logits by row and token. Does not change the cache's lengths."""
        counts = list(map(len, tokens))
        if self._decoder and sum(counts) <= self._decoder.most:
            lengths = self._cache.lengths.tolist()
            rows = [i for i, count in enumerate(counts) for _ in range(count)]
            positions = [lengths[i] + t for i, count in enumerate(counts) for t in range(count)]
            logits = self._decoder.read([token for row in tokens for token in row], rows, positions, self._cache)
            ends = list(itertools.accumulate(counts))
            return [logits[end - count : end] for count, end in zip(counts, ends, strict=True)]
        cache = self._cache[: len(tokens)]
        filled = cache.lengths.copy()
        padded = [row + [0] * (max(counts) - len(row)) for row in tokens]
        read = self._model(self._tensor(padded), cache).float().cpu().numpy()  # (B, T, V)
        cache.lengths[:] = filled  # `_decode` counts the tokens that stay
        return list(read)

    def _append(self, row: _Row, token: int, logits: npt.NDArray[np.float32]) -> GeneratedToken:
        row.tokens.append(token)
        row.read += 1
        row.left -= 1
        if self._drafter:
            self._drafter.add(row.tokens[-16:])
        finish: Literal["", "length", "end"] = "" if row.left else "length"
        if token in row.request.end_ids:
            finish = "end"
        if row.request.logprobs is None:
            return GeneratedToken(row.slot, token, finish)
        return GeneratedToken(row.slot, token, finish, *_logprobs(token, logits, row.request.logprobs))

    def _tensor(self, tokens: list[list[int]]) -> torch.Tensor:
        return torch.tensor(tokens, device=self._model.device)


@torch.inference_mode()
def read(model: GPT, tokens: Sequence[int], logprobs: int = 0) -> list[GeneratedToken]:
    """The tokens of an existing text as if generated: each with its log probability, in the engine's windows, and the
    `logprobs` most likely tokens. The first token has neither, because nothing comes before it.
    """
    result, size = [GeneratedToken(0, tokens[0])], model.eval().config.block_size
    while (n := len(result)) < len(tokens):
        start = window_start(n - 1, size)
        window = tokens[start : start + size]
        logits = model(torch.tensor([window], device=model.device))[0, n - 1 - start :].float().cpu().numpy()
        for token, row in zip(tokens[n : start + size + 1], logits, strict=False):  # the last logits have no token
            result.append(GeneratedToken(0, token, "", *_logprobs(token, row, logprobs)))
    return result


def _logprobs(token: int, logits: npt.NDArray[np.float32], count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The token's log probability, and the `count` most likely tokens with theirs."""
    nats = log_probabilities(logits)
    best = np.argsort(-nats, kind="stable")[:count].tolist()
    return float(nats[token]), tuple((i, float(nats[i])) for i in best)


def generate(
    model: GPT,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    drafter: NgramDrafter | None = None,
    decoder: Decoder | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` token ids that continue `prompt` (at least one token id)."""
    if max_new_tokens < 1:
        return
    engine = Engine(model, drafter=drafter, decoder=decoder)
    engine.add(Request(prompt, max_new_tokens, sampling))
    while engine.free_slots == 0:
        yield from (item.token for item in engine.step())
