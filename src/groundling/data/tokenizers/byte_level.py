"""GPT-2's letters for bytes, and a BPE as the library `tokenizers` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def _byte_letters() -> str:
    """GPT-2's printable letter for each byte: its Latin-1 letter if printable, otherwise the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_LETTERS = _byte_letters()
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
"""GPT-2's splitting into words, in those letters."""


def huggingface_bpe(
    vocabulary: dict[str, int],
    merges: Sequence[Sequence[str]],
    special: dict[str, int],
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    """A BPE as `tokenizer.json` of the library `tokenizers`. `special` are the ids of its special tokens."""
    exact = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": token, "special": True} | exact for token, i in special.items()]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocabulary | special, "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip
