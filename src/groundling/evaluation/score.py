"""Loss, perplexity and bits per byte of a model on a text, computed in a deterministic way.

The text is cut into windows of one context, without overlap, and every token but the first is predicted once. Losses
are added in float64, in text order and fixed-size batches, so two evaluations of a checkpoint agree to the last digit.

This way the first tokens of a window have little context. With sliding windows, neighbours overlap by half, and only
the newer half of a window counts (all of the text's first window), so every later token has at least half a context
before it. That takes twice as long and gives lower losses. `protocol` tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from groundling.data.tokenizers.base import Tokenizer
from groundling.data.tokens import Tokens
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.parallel.data_parallel import shared, total
from groundling.parallel.mesh import Mesh

_TOKENS_PER_BATCH = 16_384
_LOGITS_PER_BATCH = 1 << 24  # limits the tokens for large vocabularies, whose logits would take gigabytes


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    `loss` is in nats per token. You can compare bits per character and per byte (UTF-8) across tokenizers. They are
    exact even if tokens split characters: a character counts where its first byte is. End-of-text tokens cost bits but
    are not characters. `protocol` says how windows were placed: do not compare results of different protocols.
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
    """Raised in a long computation when the user asked to stop."""


def windows_of(n_tokens: int, block_size: int, max_tokens: int, stride: int | None = None) -> npt.NDArray[np.int64]:
    """The first tokens of the windows to score: all, or evenly spread ones with `max_tokens` tokens (0: no limit).

    Windows begin `stride` tokens apart. Default: `block_size`.
    """
    stride = stride or block_size
    starts = np.arange(0, max(n_tokens - 1 - (block_size - stride), 1), stride)
    wanted = max(1, max_tokens // stride)
    if max_tokens > 0 and wanted < len(starts):
        starts = starts[np.arange(wanted) * len(starts) // wanted]
    return starts


def stride_of(model: GPT, sliding: bool) -> int:
    """How many tokens apart windows begin."""
    return max(model.config.block_size // 2, 1) if sliding else model.config.block_size


def windows_at_once(block_size: int, vocab_size: int) -> int:
    """The default number of windows in a batch."""
    return max(1, min(_TOKENS_PER_BATCH, _LOGITS_PER_BATCH // vocab_size) // block_size)


def _batches(
    tokens: Tokens, starts: npt.NDArray[np.int64], block_size: int, batch_size: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """The starts of windows (B,), and the windows with the token after them (B, T + 1). The text's last window may be
    shorter and comes alone."""
    whole = starts[starts + block_size < len(tokens)]
    for i in range(0, len(whole), batch_size):
        here = whole[i : i + batch_size]
        yield here, tokens.windows(here, block_size + 1)
    if len(whole) < len(starts):
        yield starts[-1:], tokens.read(int(starts[-1]), len(tokens))[None]


def predictions(
    model: GPT,
    tokens: Tokens,
    machine: Machine,
    *,
    sliding: bool = False,
    max_tokens: int = 0,
    batch_size: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    mesh: Mesh | None = None,
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
    """Yield target tokens (N,) and the model's logits for them (N, V) in float32, batch by batch.

    Each token comes once, in text order; with a `mesh`, on one of the ranks. Raises the same errors as `score`. Use it
    in inference mode.
    """
    if len(tokens) < 2:
        raise ValueError("There is nothing to evaluate: the text (or its validation part) has fewer than 2 tokens.")
    model.eval()
    block_size, stride = model.config.block_size, stride_of(model, sliding)
    starts = windows_of(len(tokens), block_size, max_tokens, stride)
    batches = _batches(tokens, starts, block_size, batch_size or windows_at_once(block_size, model.vocab_size))
    for (here, batch), counts in shared(batches, mesh or Mesh.single()):
        if stopped():
            raise Interrupted
        ids = torch.from_numpy(batch[:, :-1]).to(machine.device)
        with machine.autocast():
            logits = model(ids)
        targets = batch[:, 1:]
        if not counts:
            continue
        if stride == block_size:
            yield targets.ravel(), logits.float().flatten(0, 1)
        else:
            # Tokens that the window before has scored are only context here.
            context = np.where(here > 0, block_size - stride, 0)
            counted = np.arange(targets.shape[1]) >= context[:, None]
            yield targets[counted], logits[torch.from_numpy(counted).to(logits.device)].float()


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
    mesh: Mesh | None = None,
) -> Score:
    """Score `tokens`, or about `max_tokens` of them, in batches of `batch_size` windows. `sliding` windows overlap.

    The ranks of a `mesh` share the work. Raises ValueError if there is nothing to predict, and Interrupted when
    `stopped()` is true.
    """
    bytes_of, characters_of = tokenizer.sizes
    nats, n_tokens, n_characters, n_bytes = 0.0, 0.0, 0.0, 0.0
    for targets, logits in predictions(
        model, tokens, machine, sliding=sliding, max_tokens=max_tokens, batch_size=batch_size, stopped=stopped,
        mesh=mesh,
    ):  # fmt: skip
        losses = F.cross_entropy(logits, torch.from_numpy(targets).to(logits.device), reduction="none")
        nats += float(losses.cpu().double().sum())
        n_tokens += losses.numel()
        n_bytes += int(bytes_of[targets].sum())
        n_characters += int(characters_of[targets].sum())
    nats, n_tokens, n_characters, n_bytes = total((nats, n_tokens, n_characters, n_bytes), mesh or Mesh.single())
    loss, bits = nats / n_tokens, nats / math.log(2)
    return Score(
        protocol=f"sliding, stride {stride_of(model, True)}" if sliding else "non-overlapping",
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_character=bits / n_characters if n_characters else math.nan,
        bits_per_byte=bits / n_bytes if n_bytes else math.nan,
        tokens=int(n_tokens),
        characters=int(n_characters),
        bytes=int(n_bytes),
    )


def mean_score(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """The score of a text that consists of others, mixed in these shares of tokens. They add up to 1."""
    if len(scores) == 1:
        return scores[0]

    loss = weighted(weights, [each.loss for each in scores])
    characters = weighted(weights, [each.characters / each.tokens for each in scores])
    n_bytes = weighted(weights, [each.bytes / each.tokens for each in scores])
    return Score(
        protocol=scores[0].protocol,
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_character=loss / math.log(2) / characters if characters else math.nan,
        bits_per_byte=loss / math.log(2) / n_bytes if n_bytes else math.nan,
        tokens=sum(each.tokens for each in scores),
        characters=sum(each.characters for each in scores),
        bytes=sum(each.bytes for each in scores),
    )


def weighted(weights: Sequence[float], values: Sequence[float]) -> float:
    """The sum of values times their weights."""
    return sum(weight * value for weight, value in zip(weights, values, strict=True))
