"""Generation: many texts at once in one batch, each at its own place, joining and leaving as they like.

**Past the context.** A model of context N was trained on windows of N tokens, so a window is what it gets. In a text
of any length, windows begin at tokens 0, S, 2S, ... with S = N - N // 2, and a token is read in the oldest window that
still has room for it. Thus each next token is predicted from N // 2 + 1 to N tokens, at positions from 0 on, whether
positions are learned or rotary, and whether the tokens before it were given or written. `window_start` says it in one
line; a full forward pass over `tokens[window_start(...):]` gives the same logits. The half of a window that the next
one repeats is read for that one while the old one is still in use, a few tokens at a time: there is no pause when a
window is full. (To slide by single tokens would mean to read all N again for each, with learned positions; and to keep
old keys under rotary ones would give the model what it never saw in training: keys that know of tokens long gone.)

**Drafts.** If the model reads a token and some guesses of what follows it in one pass, it learns what it would have
said after each. What it draws after a token is kept; while it is what was guessed, the draw after it is kept as well.
Each draw takes one random number, in the order of the text, so that the text is the same as without drafts, greedy or
sampled, as far as reading several tokens at once gives the same digits: all of them in `NumbaDecoder`, and all but the
last ones in PyTorch. For guesses that are certain of themselves this is the acceptance rule of speculative sampling
(Leviathan et al., "Fast inference from transformers via speculative decoding", 2023).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from groundling.config import Sampling
from groundling.inference.accelerators import Decoder, Drafter
from groundling.inference.sampling import Sampler, choose, log_probabilities
from groundling.inference.speed_selector import SpeedSelector
from groundling.model.gpt import GPT

_CHUNK = 128  # tokens of a prompt that are read between two steps of the others
_AHEAD = 64  # tokens read at once for the window after this one
_DRAFTED = 3  # tokens guessed at once
_MOST = 32  # tokens read at once, guesses included: with more, guesses have never paid


@dataclass(frozen=True)
class Request:
    """A text to write. `prompt` is at least one token id.

    It ends after `max_new_tokens`, or with the token `end_id`. `logprobs` asks for the log probability of each token
    and of so many of the likeliest ones.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    end_id: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("Generation needs at least one token to begin with.")
        if self.max_new_tokens < 1:
            raise ValueError(f"A text to write has at least 1 token, and {self.max_new_tokens} were asked for.")
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs must be 0 or more, and it is {self.logprobs}.")


@dataclass(frozen=True)
class GeneratedToken:
    """A token that was written in `slot`. `finish` says why it is the last one there, if it is.

    `logprob` is its log probability in nats, by the model itself (before temperature, penalties and limits), and `top`
    are the likeliest tokens with theirs, the likeliest first: where they were asked for.
    """

    slot: int
    token: int
    finish: Literal["", "length", "end"] = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def window_start(n: int, block_size: int) -> int:
    """The first token of the window in which token `n` of a text is read, both counted from 0."""
    stride = block_size - block_size // 2
    return max(0, -((block_size - 1 - n) // stride)) * stride


class _Row:
    """A text in the making, in one row of the caches."""

    def __init__(self, slot: int, request: Request, model: GPT) -> None:
        self.slot, self.request = slot, request
        self.tokens = list(request.prompt)
        self.left = request.max_new_tokens
        self.start = window_start(len(self.tokens) - 1, model.config.block_size)
        self.read = self.start  # the first token that the model has not read yet
        self.sampler = Sampler(request.sampling, self.tokens, model.vocab_size)

    @property
    def ready(self) -> bool:
        """Whether all but the newest token were read."""
        return self.read == len(self.tokens) - 1


class Engine:
    """Writes up to `slots` texts at a time with one model; storage is allocated once.

    `add` a request, call `step` again and again, and collect what was written; a text that comes to its end frees its
    slot by itself. `add` and `free` may be called between any two steps. Not to be shared between threads.
    """

    def __init__(
        self, model: GPT, slots: int = 1, drafter: Drafter | None = None, decoder: Decoder | None = None
    ) -> None:
        """`drafts` guess tokens ahead where few texts are written at once and it pays; they learn from the texts.
        `few_tokens` reads in place of the model where that is faster.
        """
        if slots < 1:
            raise ValueError(f"An engine needs at least 1 slot, and {slots} were asked for.")
        self._model, self._drafter, self._selector, self._decoder = model.eval(), drafter, SpeedSelector(), decoder
        N = model.config.block_size
        self._block_size, self._stride = N, N - N // 2
        self._cache = model.new_cache(slots)
        self._ahead = model.new_cache(slots, capacity=max(N // 2, 1))  # the beginnings of the windows to come
        self._rows: list[_Row] = []  # in the order of the caches' rows, without gaps
        self._free = list(range(slots))

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def add(self, request: Request) -> int:
        """Take on a text and return its slot. Raises ValueError if no slot is free or a token is unknown."""
        if not self._free:
            raise ValueError(f"All {len(self._rows)} slots are taken.")
        if not 0 <= min(request.prompt) <= max(request.prompt) < self._model.vocab_size:
            raise ValueError(f"Token ids must lie in [0, {self._model.vocab_size}).")
        row = _Row(self._free.pop(0), request, self._model)
        if self._drafter:
            self._drafter.show(row.tokens)
        self._rows.append(row)
        return row.slot

    def free(self, slot: int) -> None:
        """Give up the text in `slot`. Raises ValueError if there is none."""
        i = next((i for i, row in enumerate(self._rows) if row.slot == slot), None)
        if i is None:
            raise ValueError(f"Nothing is written in slot {slot}.")
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
        """Write one token, or several where drafts were right, of each text whose prompt is read.

        Of the prompts that are not, one is read on by a piece, so that long ones do not hold up the other texts.
        """
        for i, row in enumerate(self._rows):
            self._roll(i, row)
        written = []
        if self._rows:
            waiting = next((i for i, row in enumerate(self._rows) if not row.ready), None)
            if waiting is not None:
                self._read_prompt(waiting)
            if any(row.ready for row in self._rows):
                written = self._decode()
        for item in written:
            if item.finish:
                self.free(item.slot)
        return written

    def _read_prompt(self, i: int) -> None:
        """Read the next piece of a prompt, up to its last token, which `_decode` reads with those of the others."""
        row = self._rows[i]
        piece = row.tokens[row.read : min(row.read + _CHUNK, len(row.tokens) - 1)]
        self._model.hidden(self._tensor([piece]), self._cache[i : i + 1])
        row.read += len(piece)

    def _roll(self, i: int, row: _Row) -> None:
        """Read ahead for the next window of a row, and go over to it if this one is full."""
        full = row.read == row.start + self._block_size
        begun = row.start + self._stride + int(self._ahead.lengths[i])  # the first token not yet read ahead
        if begun < row.read and (full or row.read - begun >= _AHEAD):
            piece = row.tokens[begun : row.read]
            self._model.hidden(self._tensor([piece]), self._ahead[i : i + 1])
        if full:
            self._cache.copy_row(i, self._ahead, i)
            self._ahead.lengths[i] = 0
            row.start += self._stride

    def _decode(self) -> list[GeneratedToken]:
        """Read the newest token of each row that is ready, with the drafts after it, and choose what comes next."""
        began = time.perf_counter()
        rows, lengths = self._rows, self._cache.lengths
        room = self._block_size - 1 - int(lengths[: len(rows)].max())
        most = self._decoder.most if self._decoder else _MOST
        room = min(room, _DRAFTED, most // len(rows) - 1)
        may_draft = self._drafter is not None and room > 0
        drafted = may_draft and self._selector.takes(len(rows))
        drafts = [self._draft(row, room) if drafted and row.ready else [] for row in rows]
        going_on = [i for i, row in enumerate(rows) if row.ready]
        logits = self._read([[rows[i].tokens[-1], *drafts[i]] if rows[i].ready else [] for i in range(len(rows))])
        written = []
        for t in range(1 + max(map(len, drafts))):
            chosen = choose(np.array([logits[i][t] for i in going_on]), [rows[i].sampler for i in going_on])
            right = []
            for i, token in zip(going_on, chosen, strict=True):
                item = self._append(rows[i], token, logits[i][t])
                lengths[i] += 1
                written.append(item)
                if t < len(drafts[i]) and token == drafts[i][t] and not item.finish:
                    right.append(i)
            if not right:
                break
            going_on = right
        if may_draft:
            self._selector.record(len(rows), drafted, (time.perf_counter() - began) / len(written))
        return written

    def _read(self, tokens: list[list[int]]) -> Sequence[npt.NDArray[np.float32]]:
        """Read these tokens of each row; logits after each of them, by row. The lengths of the cache stay."""
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
        cache.lengths[:] = filled  # what was read only to fill the batch is forgotten
        return list(read)

    def _draft(self, row: _Row, room: int) -> list[int]:
        assert self._drafter is not None
        return self._drafter.draft(row.tokens, min(room, row.left - 1))

    def _append(self, row: _Row, token: int, logits: npt.NDArray[np.float32]) -> GeneratedToken:
        row.tokens.append(token)
        row.read += 1
        row.left -= 1
        if self._drafter:
            self._drafter.add(row.tokens[-16:])
        finish: Literal["", "length", "end"] = "" if row.left else "length"
        if token == row.request.end_id:
            finish = "end"
        if row.request.logprobs is None:
            return GeneratedToken(row.slot, token, finish)
        return GeneratedToken(row.slot, token, finish, *_judged(token, logits, row.request.logprobs))

    def _tensor(self, tokens: list[list[int]]) -> torch.Tensor:
        return torch.tensor(tokens, device=self._model.device)


@torch.inference_mode()
def read(model: GPT, tokens: Sequence[int], logprobs: int = 0) -> list[GeneratedToken]:
    """The tokens of a given text as if they had been written: each with its log probability, in the window in which the
    engine reads a text, and the `logprobs` likeliest tokens there. Nothing comes before the first, which has neither.
    """
    told, size = [GeneratedToken(0, tokens[0])], model.eval().config.block_size
    while (n := len(told)) < len(tokens):
        start = window_start(n - 1, size)
        window = tokens[start : start + size]
        logits = model(torch.tensor([window], device=model.device))[0, n - 1 - start :].float().cpu().numpy()
        for token, row in zip(tokens[n : start + size + 1], logits, strict=False):  # after the last one nothing comes
            told.append(GeneratedToken(0, token, "", *_judged(token, row, logprobs)))
    return told


def _judged(token: int, logits: npt.NDArray[np.float32], count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The token's log probability, and the likeliest tokens with theirs."""
    nats = log_probabilities(logits)
    likeliest = np.argsort(-nats, kind="stable")[:count].tolist()
    return float(nats[token]), tuple((i, float(nats[i])) for i in likeliest)


def generate(
    model: GPT,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    drafter: Drafter | None = None,
    decoder: Decoder | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` token ids that continue `prompt` (at least one id)."""
    if max_new_tokens < 1:
        return
    engine = Engine(model, drafter=drafter, decoder=decoder)
    engine.add(Request(prompt, max_new_tokens, sampling))
    while engine.free_slots == 0:
        for written in engine.step():
            yield written.token
