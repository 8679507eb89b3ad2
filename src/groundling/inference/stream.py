"""Tokens -> text, as soon as it is certain: whole characters, and nothing of a stop text."""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Iterator, Sequence

from groundling.config import Sampling
from groundling.data.tokenizers.base import Tokenizer
from groundling.inference.accelerators import Decoder, Drafter
from groundling.inference.engine import Engine, Request, window_start
from groundling.model.gpt import GPT


class PromptTruncated(UserWarning):
    """The prompt is longer than the context, and only its newest part is read."""


class StreamDecoder:
    """Turns the tokens of one text into pieces of it that will not change any more.

    A character that is spread over several tokens is shown when its last one has come, and not if that never comes.
    Bytes that can be no character, whatever follows, are shown as U+FFFD: a model of bytes may write such. Text that
    may be the beginning of a stop text is held back until it is none; from the first stop text on, nothing is shown.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # keeps the beginning of a character to itself
        self._held = ""
        self.stopped = False
        """Whether a stop text has come: the text ended before it."""

    def push(self, token: int) -> str:
        """Take a token; return the text that has become certain, possibly none."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(self._tokenizer.decode_bytes([token]))
        found = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._held) - max(map(self._begun, self._stop), default=0))

    def finish(self) -> str:
        """The text that was held back as the possible beginning of a stop text, when no more tokens come."""
        return "" if self.stopped else self._release(len(self._held))

    def _begun(self, stop: str) -> int:
        """How many characters at the end are the beginning of this stop text."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)

    def _release(self, n: int) -> str:
        text, self._held = self._held[:n], self._held[n:]
        return text


def stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    stop: str | Sequence[str] = (),
    drafter: Drafter | None = None,
    decoder: Decoder | None = None,
) -> Iterator[str]:
    """Yield the continuation of `prompt` as text, piece by piece: see `Writer`.

    It ends after `max_new_tokens`, at the end of a document, or where a stop text appears (which is not shown).
    Warns with PromptTruncated where the prompt does not fit into the context.
    """
    start = window_start(len(prompt) - 1, model.config.block_size)
    if start > 0:
        warnings.warn(
            f"The prompt has {len(prompt)} tokens and the context {model.config.block_size}: "
            f"the newest {len(prompt) - start} are read.",
            PromptTruncated, stacklevel=3,
        )  # fmt: skip
    writer = StreamDecoder(tokenizer, [stop] if isinstance(stop, str) else stop)
    if max_new_tokens < 1:
        return iter(())
    engine = Engine(model, drafter=drafter, decoder=decoder)
    engine.add(Request(prompt, max_new_tokens, sampling, tokenizer.end_of_text_id))
    return _pieces(engine, writer)


def _pieces(engine: Engine, writer: StreamDecoder) -> Iterator[str]:
    while engine.free_slots == 0 and not writer.stopped:
        for written in engine.step():
            if piece := writer.push(written.token):
                yield piece
    if piece := writer.finish():
        yield piece


def start_ids(tokenizer: Tokenizer, n_documents: int = 2) -> list[int]:
    """What to begin with where there is no prompt: the end of the document before, else a line break, else token 0.

    A model of a single document (`n_documents` 1) has never seen how one ends.
    """
    if tokenizer.end_of_text_id is not None and n_documents > 1:
        return [tokenizer.end_of_text_id]
    return tokenizer.encode("\n", "skip") or [0]
