"""Characters that are more often an accident than intended: which they are, how many a text has, and their removal."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from groundling import storage
from groundling.data.files import file_at, read_text, shown
from groundling.data.tokenizers.alphabet import code_points
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
        self._first = self._last = ""  # character counted so far
        self._found = Counter[str]()  # kinds of `ODD`, and what else `counts` needs

    def add(self, chunk: str) -> None:
        if chunk:
            self._held.append(chunk)
            self._n_held += len(chunk)
        if self._n_held >= _HELD:
            self._count()

    def state(self) -> dict[str, Any]:
        """All that was counted, as JSON."""
        self._count()
        return {"found": dict(self._found), "first": self._first, "last": self._last}

    def merge(self, state: dict[str, Any]) -> None:
        """Continue with a text of which another counter has this state."""
        self._count()
        self._found.update(state["found"])
        self._count_across(self._last + state["first"])
        self._first, self._last = self._first or state["first"], state["last"] or self._last

    def counts(self) -> dict[str, int]:
        """The number of characters of each kind in `ODD`, of letters in the rarer of two Unicode forms (`letters in two
        forms`), and of lines that end otherwise than most (`mixed line ends`). Only kinds that occur."""
        self._count()
        found = Counter({kind: n for kind, n in self._found.items() if kind in ODD})
        ends = line_ends(self._found["LF"], self._found["CR"], self._found["CR LF"]).values()
        found["letters in two forms"] = min(self._found["split"], self._found["composed"])
        found["mixed line ends"] = sum(ends) - max(ends, default=0)
        return +found

    def _count(self) -> None:
        held, self._held, self._n_held = self._held, [], 0
        if not held:
            return
        content = b"".join([chunk.encode("utf-8", "surrogatepass") for chunk in held])
        codes = np.frombuffer(content, np.uint8)
        rare = codes[codes - np.uint8(0x20) >= 0x5F].tobytes()  # all but printable ASCII: lower codes wrap around
        self._found["LF"] += rare.count(b"\n")
        self._found["CR"] += rare.count(b"\r")
        self._found["CR LF"] += content.count(b"\r\n") if b"\r" in rare else 0
        odd = rare.translate(None, b"\t\n\r").decode("utf-8", "surrogatepass")
        numbers, marks = np.bincount(code_points(odd)), list[int]()
        for code in np.flatnonzero(numbers).tolist():
            character, n = chr(code), int(numbers[code])
            if kind := odd_kind(character):
                self._found[kind] += n
            if code >= 0xC0 and unicodedata.normalize("NFD", character) != character:
                self._found["composed"] += n
            if code >= 0x300 and continues(character):
                marks.append(code)
        if marks:
            self._count_split(code_points("".join(held)), marks)
        self._count_across(self._last + held[0][0])
        self._first, self._last = self._first or held[0][0], held[-1][-1]

    def _count_split(self, codes: npt.NDArray[np.uint32], marks: list[int]) -> None:
        """Count the letters before a mark that are one character together with it."""
        after = np.flatnonzero(np.isin(codes[1:], marks))
        pairs, numbers = np.unique(codes[after].astype(np.int64) << 32 | codes[after + 1], return_counts=True)
        for pair, n in zip(pairs.tolist(), numbers.tolist(), strict=True):
            if _is_split(chr(pair >> 32) + chr(pair & 0xFFFFFFFF)):
                self._found["split"] += n

    def _count_across(self, pair: str) -> None:
        """Count what the last character before and the first one after are together."""
        if len(pair) == 2:
            self._found["CR LF"] += pair == "\r\n"
            self._found["split"] += ord(pair[1]) >= 0x300 and continues(pair[1]) and _is_split(pair)


def _is_split(pair: str) -> bool:
    return len(unicodedata.normalize("NFC", pair)) == 1


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
