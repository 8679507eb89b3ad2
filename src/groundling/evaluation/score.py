"""Loss and its relatives, by one deterministic protocol.

The text is cut into windows of the context's length that do not overlap, and every token but the very
first is predicted once. Losses are added up in float64 in the order of the text, in batches of a fixed
size, so two evaluations of one checkpoint agree to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from groundling.corpus.tokenizer import Tokenizer
from groundling.corpus.tokens import Tokens
from groundling.machine import Machine
from groundling.model.gpt import GPT

_TOKENS_PER_BATCH = 16_384


@dataclass(frozen=True)
class Score:
    """What a model makes of a text.

    `loss` is in nats a token. Bits per character and per byte (UTF-8) do not depend on the tokenizer, and are exact
    where tokens part characters: a character counts where its first byte stands. The marks that end documents cost
    bits there but count as no characters.
    """

    loss: float
    perplexity: float
    bits_per_character: float
    bits_per_byte: float
    tokens: int
    characters: int
    bytes: int


class Interrupted(Exception):
    """Raised out of a long computation when the user has asked to stop."""


def windows_of(n_tokens: int, block_size: int, max_tokens: int) -> npt.NDArray[np.int64]:
    """Where the windows to score begin: all of them, or `max_tokens` worth (0: no limit) spread evenly."""
    starts = np.arange(0, n_tokens - 1, block_size)
    wanted = max(1, max_tokens // block_size)
    if max_tokens > 0 and wanted < len(starts):
        starts = starts[np.arange(wanted) * len(starts) // wanted]
    return starts


def _batches(tokens: Tokens, starts: npt.NDArray[np.int64], block_size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Windows with the token that follows them, (B, T + 1); the text's last one may be shorter, and comes alone."""
    whole = starts[starts + block_size < len(tokens)]
    batch_size = max(1, _TOKENS_PER_BATCH // block_size)
    for i in range(0, len(whole), batch_size):
        yield tokens.windows(whole[i : i + batch_size], block_size + 1)
    if len(whole) < len(starts):
        yield tokens.read(int(starts[-1]), len(tokens))[None]


@torch.inference_mode()
def score(
    model: GPT,
    tokens: Tokens,
    tokenizer: Tokenizer,
    machine: Machine,
    *,
    max_tokens: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> Score:
    """Score `tokens`, or `max_tokens` of them.

    Raises ValueError if there is nothing to predict, Interrupted once `stopped()` says so.
    """
    if len(tokens) < 2:
        raise ValueError("There is nothing to evaluate: the text (or its validation part) has fewer than 2 tokens.")
    model.eval()
    block_size = model.config.block_size
    starts = windows_of(len(tokens), block_size, max_tokens)
    bytes_of, characters_of = tokenizer.sizes
    nats, n_tokens, n_characters, n_bytes = 0.0, 0, 0, 0
    for batch in _batches(tokens, starts, block_size):
        if stopped():
            raise Interrupted
        ids = torch.from_numpy(batch).to(machine.device)
        with machine.autocast():
            logits = model(ids[:, :-1])
        losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        nats += float(losses.cpu().double().sum())
        n_tokens += losses.numel()
        n_bytes += int(bytes_of[batch[:, 1:]].sum())
        n_characters += int(characters_of[batch[:, 1:]].sum())
    loss, bits = nats / n_tokens, nats / math.log(2)
    return Score(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_character=bits / n_characters if n_characters else math.nan,
        bits_per_byte=bits / n_bytes if n_bytes else math.nan,
        tokens=n_tokens,
        characters=n_characters,
        bytes=n_bytes,
    )
