"""SentencePiece's `tokenizer.model`, read without its library, as a definition for the library `tokenizers`.

The file is a protocol buffer: a list of fields, each a number and a value. Field 1 of the model are its pieces, 2 is
how it was trained, and 3 is how it normalizes text.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundling.data.tokenizers.byte_level import huggingface_bpe

_LONGEST = 200  # characters of a piece: the time to find its merges grows with the square
_BPE = 2  # of the types of models; 1 is Unigram
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # types of pieces


def read_model(content: bytes, path: Path) -> dict[str, Any]:
    """A `tokenizer.json` that gives the same ids. Raises ValueError that names `path` if there is none."""
    if re.match(rb"[A-Za-z0-9+/=]+ \d+\n", content):
        raise ValueError(f"{path} is in tiktoken's format, not SentencePiece's. Use the model's tokenizer.json.")
    try:
        pieces = list[dict[int, Any]]()
        training, normalizing = dict[int, Any](), dict[int, Any]()
        for number, value in _fields(content):
            if number == 1:
                pieces.append(dict(_fields(value)))
            elif number in (2, 3):
                (training if number == 2 else normalizing).update(_fields(value))
        names = [piece[1].decode() for piece in pieces]
        scores = [struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0 for piece in pieces]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error):
        names = []
    if not names or len(set(names)) < len(names) or max(map(len, names)) > _LONGEST:
        raise ValueError(f"{path} is damaged: it is not a SentencePiece model.")
    if training.get(3, 1) != _BPE:
        raise ValueError(
            f"{path} is a SentencePiece model of another type than BPE. Use the model's tokenizer.json instead: "
            "transformers' AutoTokenizer.save_pretrained writes one."
        )
    if normalizing.get(2) or normalizing.get(4, 1):
        raise ValueError(
            f"{path} normalizes text or removes spaces, so a text would not come back as it was. Use another tokenizer."
        )
    types = [piece.get(3, _NORMAL) for piece in pieces]
    return _definition(names, scores, types, bool(training.get(35)), bool(normalizing.get(3, 1)))


def _fields(content: bytes | int) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protocol buffer's fields: int, or bytes."""
    if isinstance(content, int):
        raise TypeError
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128 or shift > 63:
                return value

    while at < len(content):
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
            continue
        size = {1: 8, 5: 4}.get(kind) or (number() if kind == 2 else len(content) + 1)
        if at + size > len(content):
            raise ValueError
        at += size
        yield key >> 3, content[at - size : at]


def _definition(
    names: list[str], scores: list[float], types: list[int], byte_fallback: bool, space_before: bool
) -> dict[str, Any]:
    ids = {name: i for i, name in enumerate(names)}
    normal = {name for name, type in zip(names, types, strict=True) if type == _NORMAL}
    # The best score is merged first. A piece has a merge for each way to make it from two others.
    merges = [
        (-scores[ids[name]], ids[name], name[:i], name[i:])
        for name in normal
        for i in range(1, len(name))
        if name[:i] in normal and name[i:] in normal
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = [{"type": "Prepend", "prepend": "▁"}] if space_before else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space_before else []
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoder = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]}
    made = huggingface_bpe(ids, [merge[2:] for merge in sorted(merges)], {}, None, decoder)
    exact = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    made["added_tokens"] = [
        {"id": i, "content": name, "special": type != _USER_DEFINED} | exact
        for i, (name, type) in enumerate(zip(names, types, strict=True))
        if type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    made["normalizer"] = {"type": "Sequence", "normalizers": [*prepend, replace]}
    unknown = next((name for name, type in zip(names, types, strict=True) if type == _UNKNOWN), None)
    made["model"] |= {"byte_fallback": byte_fallback, "fuse_unk": True, "unk_token": unknown}
    return made
