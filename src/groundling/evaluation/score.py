"""Loss and its relatives, by one deterministic protocol.

The text is cut into windows of the context's length that do not overlap, and every token but the very
first is predicted once. Losses are added up in float64 in the order of the text, in batches of a fixed
size, so two evaluations of one checkpoint agree to the last digit.

There, a window's first tokens are predicted from little. Sliding windows overlap by half of their length instead, and
of each but the first only the newer half is counted: every token has at least half a context before it. That takes
twice the time, gives lower figures, and is told apart by its label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from groundling.data.corpus import Tokens
from groundling.data.tokenizers.base import Tokenizer
from groundling.machine import Machine
from groundling.model.gpt import GPT

_TOKENS_PER_BATCH = 16_384
_LOGITS_PER_BATCH = 1 << 24  # fewer tokens of a large vocabulary, whose logits would take gigabytes


@dataclass(frozen=True)
class Score:
    """What a model makes of a text.

    `loss` is in nats a token. Bits per character and per byte (UTF-8) do not depend on the tokenizer, and are exact
    where tokens part characters: a character counts where its first byte stands. The marks that end documents cost
    bits there but count as no characters. `protocol` says how windows were laid: figures of different protocols do not
    compare.
    """

    protocol: str
    loss: float
    perplexity: float
    bits_per_character: float
    bits_per_byte: float
    tokens: int
    characters: int
    bytes: int


class Interrupted(Exception):
    """Raised out of a long computation when the user has asked to stop."""


def windows_of(n_tokens: int, block_size: int, max_tokens: int, stride: int | None = None) -> npt.NDArray[np.int64]:
    """Where the windows to score begin: all of them, or `max_tokens` worth (0: no limit) spread evenly.

    `stride` tokens (`block_size` if None) lie between the beginnings of two windows.
    """
    stride = stride or block_size
    starts = np.arange(0, max(n_tokens - 1 - (block_size - stride), 1), stride)
    wanted = max(1, max_tokens // stride)
    if max_tokens > 0 and wanted < len(starts):
        starts = starts[np.arange(wanted) * len(starts) // wanted]
    return starts


def stride_of(model: GPT, sliding: bool) -> int:
    """How far windows lie apart, in tokens."""
    return max(model.config.block_size // 2, 1) if sliding else model.config.block_size


def windows_at_once(block_size: int, vocab_size: int) -> int:
    """How many windows go through the model together, unless fewer are asked for."""
    return max(1, min(_TOKENS_PER_BATCH, _LOGITS_PER_BATCH // vocab_size) // block_size)


def _batches(
    tokens: Tokens, starts: npt.NDArray[np.int64], block_size: int, batch_size: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Windows with the token that follows them, (B, T + 1); the text's last one may be shorter, and comes alone."""
    whole = starts[starts + block_size < len(tokens)]
    for i in range(0, len(whole), batch_size):
        yield tokens.windows(whole[i : i + batch_size], block_size + 1)
    if len(whole) < len(starts):
        yield tokens.read(int(starts[-1]), len(tokens))[None]


def predictions(
    model: GPT,
    tokens: Tokens,
    machine: Machine,
    *,
    sliding: bool = False,
    max_tokens: int = 0,
    batch_size: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
    """The tokens that were to be predicted, (N,), and the model's logits for each, (N, V) in float32, batch by batch.

    In the order of the text, each token once. Raises as `score` does. To be used in inference mode.
    """
    if len(tokens) < 2:
        raise ValueError("There is nothing to evaluate: the text (or its validation part) has fewer than 2 tokens.")
    model.eval()
    block_size, stride = model.config.block_size, stride_of(model, sliding)
    starts = windows_of(len(tokens), block_size, max_tokens, stride)
    done = 0
    for batch in _batches(tokens, starts, block_size, batch_size or windows_at_once(block_size, model.vocab_size)):
        if stopped():
            raise Interrupted
        ids = torch.from_numpy(batch[:, :-1]).to(machine.device)
        with machine.autocast():
            logits = model(ids)
        targets = batch[:, 1:]
        if stride == block_size:
            yield targets.ravel(), logits.float().flatten(0, 1)
        else:
            # What the window before has counted is context here; the text's first window has none before it.
            known = np.where(starts[done : done + len(batch)] > 0, block_size - stride, 0)
            counted = np.arange(targets.shape[1]) >= known[:, None]
            yield targets[counted], logits[torch.from_numpy(counted).to(logits.device)].float()
        done += len(batch)


@torch.inference_mode()
def score(
    model: GPT,
    tokens: Tokens,
    tokenizer: Tokenizer,
    machine: Machine,
    *,
    max_tokens: int = 0,
    sliding: bool = False,
    batch_size: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Score:
    """Score `tokens`, or `max_tokens` of them, `batch_size` windows at once; with `sliding`, by windows that overlap.

    Raises ValueError if there is nothing to predict, Interrupted once `stopped()` says so.
    """
    bytes_of, characters_of = tokenizer.sizes
    nats, n_tokens, n_characters, n_bytes = 0.0, 0, 0, 0
    for targets, logits in predictions(
        model, tokens, machine, sliding=sliding, max_tokens=max_tokens, batch_size=batch_size, stopped=stopped
    ):
        losses = F.cross_entropy(logits, torch.from_numpy(targets).to(logits.device), reduction="none")
        nats += float(losses.cpu().double().sum())
        n_tokens += losses.numel()
        n_bytes += int(bytes_of[targets].sum())
        n_characters += int(characters_of[targets].sum())
    loss, bits = nats / n_tokens, nats / math.log(2)
    return Score(
        protocol=f"sliding, stride {stride_of(model, True)}" if sliding else "non-overlapping",
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_character=bits / n_characters if n_characters else math.nan,
        bits_per_byte=bits / n_bytes if n_bytes else math.nan,
        tokens=n_tokens,
        characters=n_characters,
        bytes=n_bytes,
    )
