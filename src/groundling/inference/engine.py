"""Generation: prefill the prompt, then decode token by token, and stream text as it becomes certain."""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Iterator, Sequence

import torch

from groundling.corpus.tokenizer import Tokenizer
from groundling.inference.sampling import Sampling, pick
from groundling.model.cache import KVCache
from groundling.model.gpt import GPT


class PromptTruncated(UserWarning):
    """The prompt is longer than the context, and only its newest part is read."""


@torch.inference_mode()
def generate(model: GPT, prompt: Sequence[int], max_new_tokens: int, sampling: Sampling) -> Iterator[int]:
    """Yield up to `max_new_tokens` token ids that continue `prompt` (at least one id).

    Past the context the window rolls: when it is full, the older half is dropped and the newer half read
    again, so that a token sees between half a context and a whole one. The same happens to a prompt that
    does not fit: its newest part is kept.
    """
    if not prompt:
        raise ValueError("Generation needs at least one token to begin with.")
    model.eval()
    capacity = model.config.block_size
    generator, cache = sampling.generator(), model.new_cache()
    window = list(prompt)[-capacity:]
    logits = prefill(model, window, cache)
    for _ in range(max_new_tokens):
        token = int(pick(logits, sampling, generator))
        yield token
        window.append(token)
        if cache.length < capacity:
            logits = model(torch.tensor([[token]], device=model.device), cache)[:, -1]
        else:
            window = window[-max(capacity // 2, 1) :]
            cache.reset()
            logits = prefill(model, window, cache)


def prefill(model: GPT, tokens: Sequence[int], cache: KVCache) -> torch.Tensor:
    """Read `tokens` into the cache at once; logits (1, V) for what comes next."""
    return model(torch.tensor([tokens], device=model.device), cache)[:, -1]


def stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    stop: str = "",
) -> Iterator[str]:
    """Yield the continuation of `prompt` as text, piece by piece.

    It ends after `max_new_tokens`, at the end of a document, or where `stop` appears (which is not shown). A
    character that is spread over several tokens is shown when its last one has come, and not if that never comes.
    Warns with PromptTruncated where the prompt does not fit into the context.
    """
    if len(prompt) > model.config.block_size:
        warnings.warn(
            f"The prompt has {len(prompt)} tokens and the context {model.config.block_size}: the newest are kept.",
            PromptTruncated, stacklevel=3,
        )  # fmt: skip
    return _stream(model, tokenizer, prompt, max_new_tokens, sampling, stop)


def _stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    stop: str,
) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # keeps the beginning of a character to itself
    held = ""  # text that may yet turn out to be the beginning of `stop`
    for token in generate(model, prompt, max_new_tokens, sampling):
        if token == tokenizer.end_of_text_id:
            break
        held += decoder.decode(tokenizer.decode_bytes([token]))
        if stop and stop in held:
            yield held[: held.index(stop)]
            return
        keep = next((n for n in range(min(len(stop) - 1, len(held)), 0, -1) if held.endswith(stop[:n])), 0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def beginning(tokenizer: Tokenizer, n_documents: int = 2) -> list[int]:
    """What to begin with where there is no prompt: the end of the document before, else a line break, else token 0.

    A model of a single document (`n_documents` 1) has never seen how one ends.
    """
    if tokenizer.end_of_text_id is not None and n_documents > 1:
        return [tokenizer.end_of_text_id]
    return tokenizer.encode("\n", "skip") or [0]
