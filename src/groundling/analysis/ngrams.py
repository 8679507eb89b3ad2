"""N-gram baselines: the losses of n-gram models on a text, to compare a trained model's loss with.

An n-gram model predicts the next token from the n - 1 before it, by how often each token followed them in the training
part. Smoothing is by Witten and Bell ("The zero-frequency problem", 1991), interpolated as in Chen and Goodman ("An
empirical study of smoothing techniques for language modeling", 1998), from the uniform model up: with a context h, its
count N(h), the number T(h) of different tokens seen after it, and h' as h without its first token,

    p(w | h) = (count(h w) + T(h) p(w | h')) / (N(h) + T(h)), and p(w | h) = p(w | h') if h was never seen.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from groundling.data.hashing import CACHED, U64, mix
from groundling.data.progress import Progress, silent
from groundling.data.tokens import Tokens

TRAINING_TOKENS = 16_000_000  # more are sampled evenly: memory stays below 1 GB, and time at some ten seconds
VALIDATION_TOKENS = 1_000_000  # the same for the validation part
_TABLE = 8192  # vocabularies up to this size get a table of all possible pairs
_READ = 1 << 22  # tokens read at a time
_PIECES = 256  # in a sample; the few n-grams across two pieces count like any other

_F64 = npt.NDArray[np.float64]


def ngram_losses(
    train: Tokens,
    validation: Tokens,
    vocab_size: int,
    max_order: int = 8,
    progress: Progress = silent,
    training_tokens: int = TRAINING_TOKENS,
) -> list[float]:
    """Cross-entropy on the validation part in nats per token, of the uniform model (0) and each n-gram model (n).

    The list ends at `max_order`, or two orders after the best one: after that it only gets worse. Shorter n-grams
    predict the first n - 1 tokens. Of longer parts, `training_tokens` and VALIDATION_TOKENS are sampled evenly.

    Raises ValueError if a part has no tokens.
    """
    if not len(train) or not len(validation):
        raise ValueError("The text is too short for n-grams: its training or validation part has no tokens.")
    seen, wanted = spread(train, training_tokens), spread(validation, VALIDATION_TOKENS)
    bits = np.uint64(max(1, (vocab_size - 1).bit_length()))
    seen_contexts, wanted_contexts, space = np.zeros_like(seen), np.zeros_like(wanted), np.empty_like(seen)
    p = np.full(len(wanted), 1 / vocab_size)
    losses = [math.log(vocab_size)]
    for n in range(1, min(max_order, len(seen), len(wanted)) + 1):
        progress("counting n-grams of", (n - 1) * len(train) // max_order, len(train))
        if n > 1:
            seen_contexts = _lengthened(seen_contexts, seen)
            wanted_contexts = _lengthened(wanted_contexts, wanted)
        # The context's hash in the upper bits, the token in the lower: sorting brings equal contexts together. With
        # 16 million contexts and 16 bits for the token, expect less than one collision.
        grams = np.left_shift(seen_contexts, bits, out=space[: len(seen_contexts)])
        grams |= seen[n - 1 :]
        grams.sort()
        p[n - 1 :] = _interpolated(grams, (wanted_contexts << bits) | wanted[n - 1 :], bits, p[n - 1 :])
        losses.append(float(-np.log(p).mean()))
        if n - int(np.argmin(losses)) == 2:
            break
    progress("counting n-grams of", len(train), len(train))
    return losses


def one_gram(tokens: Tokens, vocab_size: int) -> float:
    """The entropy of single tokens in nats: the loss of a 1-gram model on the text it counted."""
    counts = np.bincount(spread(tokens, TRAINING_TOKENS).astype(np.int64), minlength=vocab_size)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    """Convert `loss` (nats per token) on a text of `n_tokens` and `n_bytes` of UTF-8, to compare across tokenizers."""
    return loss * n_tokens / n_bytes / math.log(2)


def spread(tokens: Tokens, limit: int) -> U64:
    """All ids, or at most `limit` of them from evenly spread places: (n,)."""
    if len(tokens) <= limit:
        return tokens.read(0, len(tokens)).astype(np.uint64)
    length = max(1, limit // _PIECES)
    starts = np.linspace(0, len(tokens) - length, limit // length).astype(np.int64)
    ids = np.empty((len(starts), length), dtype=np.uint64)
    for i, start in enumerate(starts.tolist()):
        ids[i] = tokens.read(start, start + length)
    return ids.ravel()


def _lengthened(contexts: U64, tokens: U64) -> U64:
    """Extend hashed contexts by the token before, in place. The first context has none before it and is dropped."""
    for start in range(0, len(contexts) - 1, CACHED):
        stop = min(start + CACHED, len(contexts) - 1)
        values = (tokens[start:stop] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        contexts[start:stop] = mix(values + contexts[start + 1 : stop + 1])
    return contexts[:-1]


def _interpolated(grams: U64, wanted: U64, bits: np.uint64, shorter: _F64) -> _F64:
    """p(w | h) of the `wanted` n-grams, from the sorted n-grams of the training part and p(w | h') in `shorter`."""
    starts = _changes(grams)
    kinds, counts = grams[starts], np.diff(np.append(starts, len(grams)))
    contexts = kinds >> bits
    starts = _changes(contexts)
    kinds_after = np.diff(np.append(starts, len(contexts)))  # T(h)
    total = np.add.reduceat(counts, starts)  # N(h)
    found, i = _find(kinds, wanted)
    count = np.where(found, counts[i], 0)
    found, i = _find(contexts[starts], wanted >> bits)
    after = kinds_after[i]
    return np.where(found, (count + after * shorter) / (total[i] + after), shorter)


def _changes(ordered: U64) -> npt.NDArray[np.int64]:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))


def _find(ordered: U64, wanted: U64) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Whether and where each wanted value is in `ordered`."""
    order = np.argsort(wanted)  # a search in order is many times faster: neighbours are in the cache
    places = np.empty(len(wanted), dtype=np.int64)
    places[order] = np.searchsorted(ordered, wanted[order])
    places = np.minimum(places, len(ordered) - 1)
    return ordered[places] == wanted, places


def bigrams(tokens: Tokens, vocab_size: int, end_of_text_id: int | None = None) -> int:
    """The number of different token pairs inside documents, of vocab_size² possible ones."""
    table = np.zeros(vocab_size**2 if vocab_size <= _TABLE else 0, dtype=bool)
    pairs = np.empty(0, dtype=np.int64)
    for start in range(0, len(tokens) - 1, _READ):
        ids = tokens.read(start, min(start + _READ + 1, len(tokens)))
        ends = ids == end_of_text_id
        inside = (ids[:-1] * vocab_size + ids[1:])[~(ends[:-1] | ends[1:])]
        if vocab_size <= _TABLE:
            table[inside] = True
        else:
            pairs = np.union1d(pairs, inside)
    return int(np.count_nonzero(table)) + len(pairs)
