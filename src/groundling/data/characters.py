"""Characters that are more often an accident than intended: which they are, how many a text has, and their removal."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from groundling import storage
from groundling.data.files import file_at, read_text, shown
from groundling.data.tokenizers.lookalikes import continues
from groundling.escape import command, quoted

ODD = {
    "replacement character": "U+FFFD marks a byte that could not be decoded: the text was damaged before you got it",
    "byte-order mark inside": "A byte-order mark belongs at the start of a file: files were probably concatenated",
    "control character": "Control characters are rarely intended, and each takes an entry of the vocabulary",
    "invisible character": "Soft hyphens, direction marks and the like are invisible, but the model has to learn them",
    "unassigned or private character": "Unicode gives these characters no meaning, so others may not see what you see",
}
_HELD = 2**20  # characters counted at a time


def odd_kind(character: str) -> str | None:
    """The kind of `ODD` that the character is."""
    if character == "\ufffd":
        return "replacement character"
    if character == "\ufeff":
        return "byte-order mark inside"
    if character in "\u200c\u200d":
        return None  # joiners: Persian, Hindi and emoji are spelled with them
    category = unicodedata.category(character)
    if category == "Cc" and character not in "\t\n\r":
        return "control character"
    if category in ("Cf", "Zl", "Zp"):
        return "invisible character"
    return "unassigned or private character" if category in ("Cn", "Co", "Cs") else None


def line_ends(feeds: int, returns: int, pairs: int) -> dict[str, int]:
    """How many lines end in each way, from the numbers of LF, CR and CR LF."""
    kinds = {"CR LF": pairs, "LF": feeds - pairs, "CR": returns - pairs}
    return {name: n for name, n in kinds.items() if n}


class OddCharacters:
    """Counts the odd characters of a text that comes in chunks, while it is read for another purpose."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._n_held = 0
        self._last = ""  # character counted so far
        self._counts = np.zeros(128, np.int64)  # of each code point
        self._pairs = self._split = 0  # CR LF, and letters that could be one character

    def add(self, chunk: str) -> None:
        self._held.append(chunk)
        self._n_held += len(chunk)
        if self._n_held >= _HELD:
            self._count()

    def counts(self) -> dict[str, int]:
        """The number of characters of each kind in `ODD`, of letters in the rarer of two Unicode forms (`letters in two
        forms`), and of lines that end otherwise than most (`mixed line ends`). Only kinds that occur."""
        self._count()
        found, composed = Counter[str](), 0
        for code in np.flatnonzero(self._counts).tolist():
            n = int(self._counts[code])
            if kind := odd_kind(chr(code)):
                found[kind] += n
            if code >= 0xC0 and unicodedata.normalize("NFD", chr(code)) != chr(code):
                composed += n
        ends = line_ends(int(self._counts[10]), int(self._counts[13]), self._pairs).values()
        found["letters in two forms"] = min(self._split, composed)
        found["mixed line ends"] = sum(ends) - max(ends, default=0)
        return +found

    def _count(self) -> None:
        text = "".join([self._last, *self._held])
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
        new = np.bincount(codes[len(self._last) :], minlength=len(self._counts))
        marks = [c for c in np.flatnonzero(new).tolist() if c >= 0x300 and continues(chr(c))]
        new[: len(self._counts)] += self._counts
        self._counts, self._held, self._n_held, self._last = new, [], 0, text[-1:]
        self._pairs += text.count("\r\n")
        after = np.flatnonzero(np.isin(codes[1:], marks)) if marks else codes[:0]
        pairs, n = np.unique(codes[after] << 32 | codes[after + 1], return_counts=True)
        for pair, count in zip(pairs.tolist(), n.tolist(), strict=True):
            if len(unicodedata.normalize("NFC", chr(pair >> 32) + chr(pair & 0xFFFFFFFF))) == 1:
                self._split += count


_HARMFUL = {
    "replacement character": "U+FFFD in place of damaged bytes",
    "byte-order mark inside": "byte-order mark(s) inside (U+FEFF, from joined files)",
    "control character": "control character(s)",
    "letters in two forms": "letter(s) in another Unicode form than the rest (NFC and NFD)",
    "mixed line ends": "line end(s) unlike the rest",
}


def odd_notice(counts: Mapping[str, int], arguments: Sequence[str], plain: str | None = None) -> str:
    """A sentence about what surely harms a model, with commands that help. Empty if there is nothing.

    `counts` are those of `OddCharacters`, `arguments` name the text on a command line, and `plain` is its path if it is
    one plain text file.
    """
    found = [f"{counts[kind]:,} {what}" for kind, what in _HARMFUL.items() if counts.get(kind)]
    if not found:
        return ""
    sentence = f"The model will learn some probable accidents: {', '.join(found)}. "
    sentence += f"`{command('inspect', *arguments)}` shows where."
    can_be_cleaned = counts.keys() & _HARMFUL.keys() - {"replacement character"}
    if can_be_cleaned and plain is not None:
        sentence += f" `{clean_command(plain)}` writes a clean copy."
    return sentence


def clean_command(path: str | os.PathLike[str], form: str = "NFC") -> str:
    """A shell command for `clean_file`."""
    arguments = json.dumps(os.fspath(path), ensure_ascii=False) + (f', "{form}"' if form != "NFC" else "")
    return f"python -c {quoted(f'from groundling.data.characters import clean_file; clean_file({arguments})')}"


def clean_file(path: str | os.PathLike[str], form: Literal["NFC", "NFD"] = "NFC") -> Path:
    """Write a clean copy of a text file beside it: `book.clean.txt` for `book.txt`. Prints and returns its path."""
    file = Path(path)
    text = clean("".join(read_text(file_at(file, shown(file), file.name))), form)
    copy = file.with_name(f"{file.stem}.clean{file.suffix}")
    storage.write_file(copy, text)
    print(copy)
    return copy


def clean(text: str, form: Literal["NFC", "NFD"] = "NFC") -> str:
    """`text` in one Unicode form, with LF line ends, without control characters and byte-order marks.

    U+FFFD stays: what was there is lost.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    kinds = {character: odd_kind(character) for character in set(text)}
    unwanted = [c for c, kind in kinds.items() if kind in ("control character", "byte-order mark inside")]
    return unicodedata.normalize(form, text.translate(dict.fromkeys(map(ord, unwanted))))
