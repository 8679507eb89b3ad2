"""A prompt for examples: in commands that are printed, and in the code that comes with an export."""

from __future__ import annotations

import re
from collections.abc import Iterator

from groundling.data.tokenizers.base import Tokenizer
from groundling.data.tokens import Tokens

_TOKENS = 500  # of the text, to look at
_CHARACTERS = 20  # of the prompt, at most


def example_prompt(text: str | Tokens, tokenizer: Tokenizer, room: int) -> str:
    """The first word of `text`, or as much of it as `room` tokens hold. If the tokenizer cannot encode it, the next
    word, or else a token of the vocabulary. Empty if none fits.

    `text` should be the model's own: any other may be in a script that it has never seen.
    """
    if isinstance(text, Tokens):
        text = tokenizer.decode(text.read(0, min(len(text), _TOKENS)))
    for word in _words(text, tokenizer):
        for length in range(min(len(word), _CHARACTERS), 0, -1):
            ids = tokenizer.encode(word[:length], "skip")
            if len(ids) <= room and tokenizer.decode(ids) == word[:length]:
                return word[:length]
    return ""


def _words(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    yield from re.findall(r"\w+", text) or text.split()
    pieces = [piece.decode(errors="ignore") for piece in tokenizer.pieces]
    for length in (3, 1):
        yield from (word for piece in pieces if (word := piece.strip()).isalnum() and len(word) >= length)
    yield from pieces
