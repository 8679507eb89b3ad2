"""Stream tokens as text: whole characters only, and nothing of a stop text."""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Iterator, Sequence

from groundling.config import Sampling
from groundling.data.conversations import ToolCall
from groundling.data.tokenizers.base import PromptWarning, Tokenizer
from groundling.inference.engine import Decoder, Engine, Request, window_start
from groundling.inference.ngram_drafter import NgramDrafter
from groundling.model.gpt import GPT


class PromptTruncated(PromptWarning):
    """The prompt is longer than the context: only its newest part is used."""


class StreamDecoder:
    """Turns the tokens of one text into pieces of text that are final.

    A character made of several tokens appears with its last one. Invalid bytes, which a byte-level model can generate,
    appear as U+FFFD. Text that may begin a stop text is held back until it cannot. Output ends at the first stop text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # holds back incomplete characters
        self._held = ""
        self.stopped = False  # whether a stop text was found
        self.calls: tuple[ToolCall, ...] = ()  # of tools, in a chat; see inference/chat.py

    def push(self, token: int) -> str:
        """Add a token. Returns the text that became final, which may be empty."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(self._tokenizer.decode_bytes([token]))
        stops = [start for text in self._stop if (start := self._held.find(text)) >= 0]
        if stops:
            self.stopped = True
            return self._release(min(stops))
        return self._release(len(self._held) - max(map(self._overlap, self._stop), default=0))

    def finish(self) -> str:
        """After the last token: the text still held back because a stop text might begin there."""
        return "" if self.stopped else self._release(len(self._held))

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the text begin this stop text."""
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
    drafter: NgramDrafter | None = None,
    decoder: Decoder | None = None,
) -> Iterator[str]:
    """Yield the continuation of `prompt` as text, piece by piece: see `StreamDecoder`.

    It ends after `max_new_tokens`, at the end of a document, or before a stop text. Warns with PromptTruncated if the
    prompt is longer than the context.
    """
    start = window_start(len(prompt) - 1, model.config.block_size)
    if start > 0:
        warnings.warn(
            f"The prompt has {len(prompt)} tokens, but the context is {model.config.block_size}: "
            f"only the newest {len(prompt) - start} are used.",
            PromptTruncated, stacklevel=3,
        )  # fmt: skip
    if max_new_tokens < 1:
        return iter(())
    engine = Engine(model, drafter=drafter, decoder=decoder)
    engine.add(Request(prompt, max_new_tokens, sampling, tokenizer.end_ids))
    return decoded(engine, StreamDecoder(tokenizer, [stop] if isinstance(stop, str) else stop))


def decoded(engine: Engine, decoder: StreamDecoder) -> Iterator[str]:
    """The text of an engine that has one slot, and a text in it."""
    while engine.free_slots == 0 and not decoder.stopped:
        for item in engine.step():
            if piece := decoder.push(item.token):
                yield piece
    if piece := decoder.finish():
        yield piece


def start_ids(tokenizer: Tokenizer, n_documents: int = 2) -> list[int]:
    """The tokens to start from without a prompt: the start or end-of-text token, else a line break, else token 0.

    A model trained on a single document (`n_documents` 1) has never seen the end-of-text token.
    """
    if tokenizer.start_ids:
        return tokenizer.start_ids
    if tokenizer.end_of_text_id is not None and n_documents > 1:
        return [tokenizer.end_of_text_id]
    return tokenizer.encode("\n", "skip") or [0]
