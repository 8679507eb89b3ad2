"""What a text is made of: scripts and languages, its rarest characters, and what looks like an accident."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from groundling.checkup.text import I64, PIECE, Ids, Place, Text

RAREST = 20
_PLACES = 3  # how many are named of what stands in many
_LANGUAGE_SAMPLES, _SAMPLE_CHARACTERS, _ENOUGH_LETTERS = 200, 500, 60
_SPACES = "\t\n\r"


@dataclass(frozen=True)
class Character:
    """One character of the text, and the first places where it stands."""

    character: str
    code: str
    """Such as `U+00E9`."""
    name: str
    count: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Oddity:
    """Something that is more often an accident than meant."""

    kind: str
    sentence: str
    """What it is, how often, and what to do."""
    count: int
    examples: tuple[str, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Characters:
    """The figures of a text. Shares are of all characters."""

    characters: int
    bytes: int
    """As UTF-8."""
    lines: int
    alphabet: int
    """How many different characters there are."""
    scripts: dict[str, float]
    """Script (by Unicode's names) to share; `Common` is what all scripts use: spaces, digits, punctuation."""
    languages: dict[str, float]
    """Language (ISO 639-1 code) to share of samples that were judged; empty where there is too little to judge."""
    rarest: tuple[Character, ...]
    oddities: tuple[Oddity, ...]


def describe(text: Text) -> Characters:
    """Read the whole text once and look at its characters; once more for what is odd."""
    size = len(text.characters) + 1
    counts, returns_in_pairs = np.zeros(size, dtype=np.int64), 0
    feed, carriage = text.id_of("\n"), text.id_of("\r")
    last = -1
    for _, ids in text.pieces("counting", more=1):
        own = ids[:PIECE]
        counts += np.bincount(own, minlength=size)
        if feed is not None and carriage is not None:
            returns_in_pairs += int(np.count_nonzero((ids[:-1] == carriage) & (ids[1:] == feed)))
        last = int(own[-1]) if len(own) else last
    counts = counts[:-1]  # without the documents' marks
    total = int(counts.sum())
    lines = 0 if feed is None else int(counts[feed])
    unfinished = int(last not in (feed, text.end_mark)) if text.end_mark is None else _unfinished(text, feed)
    rarest = np.lexsort((np.arange(len(counts)), counts))[:RAREST]
    odd = _odd_characters(text)
    places = _first_places(text, {int(i) for i in rarest} | {i for ids in odd.values() for i in ids})
    return Characters(
        characters=total,
        bytes=sum(int(n) * len(c.encode()) for c, n in zip(text.characters, counts, strict=True)),
        lines=lines + unfinished,
        alphabet=len(counts),
        scripts=_scripts(text.characters, counts, total),
        languages=_languages(text),
        rarest=tuple(_character(text, int(i), counts, places) for i in rarest),
        oddities=(
            *_character_oddities(text, odd, counts, places),
            *_line_ends(text, counts, returns_in_pairs),
            *_unnormalized_and_garbled(text),
        ),
    )


def _unfinished(text: Text, feed: int | None) -> int:
    """Documents whose last line has no line feed."""
    n = 0
    begin = 0
    for end in text.ends:
        n += int(end - 1 > begin and (feed is None or int(text.read(int(end) - 2, int(end) - 1)[0]) != feed))
        begin = int(end)
    return n


def _scripts(characters: str, counts: I64, total: int) -> dict[str, float]:
    from fontTools.unicodedata import script, script_name

    shares: Counter[str] = Counter()
    for character, count in zip(characters, counts, strict=True):
        shares[script_name(script(character)).replace("_", " ")] += int(count)
    return {name: count / max(total, 1) for name, count in shares.most_common()}


def _languages(text: Text) -> dict[str, float]:
    """By samples from evenly spread places, each judged by py3langid."""
    found: Counter[str] = Counter()
    n = max(1, min(_LANGUAGE_SAMPLES, text.length // _SAMPLE_CHARACTERS))
    for start in np.linspace(0, max(text.length - _SAMPLE_CHARACTERS, 0), n).astype(int):
        sample = text.quote(int(start), _SAMPLE_CHARACTERS)
        if sum(map(str.isalpha, sample)) < _ENOUGH_LETTERS:
            continue
        found[_language_of(sample)] += 1
    # A single sample in many is more likely a mistake than a language.
    kept = {code: n for code, n in found.most_common() if n > 1 or found.total() < 10}
    return {code: n / sum(kept.values()) for code, n in kept.items()}


@cache
def _identifier() -> Any:
    from py3langid.langid import LanguageIdentifier

    return LanguageIdentifier.from_model_file("data/model.npz.xz")


def _language_of(sample: str) -> str:
    return str(_identifier().classify(sample)[0])


def _character(text: Text, i: int, counts: I64, places: dict[int, list[int]]) -> Character:
    character = text.characters[i]
    return Character(
        character,
        f"U+{ord(character):04X}",
        unicodedata.name(character, _UNNAMED.get(character, "without a name")),
        int(counts[i]),
        tuple(text.places(places[i])),
    )


_UNNAMED = dict.fromkeys(map(chr, (*range(32), *range(127, 160))), "control character")
_UNNAMED |= {"\t": "tab", "\n": "line feed", "\r": "carriage return", "\0": "null", "\x1b": "escape"}


def _first_places(text: Text, wanted: set[int]) -> dict[int, list[int]]:
    """The first few positions of each of the wanted ids."""
    places: dict[int, list[int]] = defaultdict(list)
    for position, ids in text.pieces("searching"):
        missing = [i for i in wanted if len(places[i]) < _PLACES]
        if not missing:
            break
        table = np.zeros(len(text.characters) + 1, dtype=bool)
        table[missing] = True
        hits = np.flatnonzero(table[ids])
        for i in np.unique(ids[hits]):
            here = hits[ids[hits] == i][: _PLACES - len(places[int(i)])]
            places[int(i)] += (position + here).tolist()
    return places


_ODD = {
    "replacement character": "U+FFFD stands where a byte could not be read: the text was damaged before it came here",
    "byte-order mark inside": "A byte-order mark belongs to a file's beginning: files were probably joined",
    "control character": "Control characters are rarely meant, and each costs a place in the vocabulary",
    "invisible character": "Soft hyphens, marks of direction or width and the like do not show, but have to be learned",
    "unassigned or private character": "Unicode gives them no meaning, so others will not see what you see",
}


def _odd_characters(text: Text) -> dict[str, list[int]]:
    """Ids of characters that are odd wherever they stand, by kind."""
    odd: dict[str, list[int]] = defaultdict(list)
    for i, character in enumerate(text.characters):
        if kind := _odd_kind(character):
            odd[kind].append(i)
    return odd


def _odd_kind(character: str) -> str | None:
    if character == "\ufffd":
        return "replacement character"
    if character == "\ufeff":
        return "byte-order mark inside"
    if character in "\u200c\u200d":
        return None  # joiners: Persian, Hindi and emoji are spelled with them
    category = unicodedata.category(character)
    if category == "Cc" and character not in _SPACES:
        return "control character"
    if category in ("Cf", "Zl", "Zp"):
        return "invisible character"
    return "unassigned or private character" if category in ("Cn", "Co", "Cs") else None


def _character_oddities(
    text: Text, odd: dict[str, list[int]], counts: I64, places: dict[int, list[int]]
) -> list[Oddity]:
    found = []
    for kind, ids in odd.items():
        n = int(counts[ids].sum())
        first = sorted(position for i in ids for position in places[i])[:_PLACES]
        codes = tuple(f"U+{ord(text.characters[i]):04X}" for i in ids)
        sentence = f"{_ODD[kind]}; {n:,} of them."
        found.append(Oddity(kind, sentence, n, codes[:RAREST], tuple(text.places(first))))
    return found


def _line_ends(text: Text, counts: I64, pairs: int) -> list[Oddity]:
    feed, carriage = text.id_of("\n"), text.id_of("\r")
    if carriage is None:
        return []
    feeds = int(counts[feed]) if feed is not None else 0
    kinds = {"CR LF": pairs, "LF": feeds - pairs, "CR": int(counts[carriage]) - pairs}
    present = {name: n for name, n in kinds.items() if n}
    said = ", ".join(f"{n:,} {name}" for name, n in present.items())
    if len(present) > 1:
        sentence = f"Lines end in more than one way ({said}): make them one, or the model learns to mix them."
        return [Oddity("mixed line ends", sentence, min(present.values()), tuple(present), ())]
    if "LF" not in present:
        sentence = f"Lines end with a carriage return ({said}): one more character in the vocabulary than needed."
        return [Oddity("carriage returns", sentence, sum(present.values()), tuple(present), ())]
    return []


def _unnormalized_and_garbled(text: Text) -> list[Oddity]:
    """Lines that are not in Unicode's form NFC, and lines whose UTF-8 was once read as another encoding."""
    leads, tails = _garbling_pairs(text.characters)
    may_be_garbled = leads.any() and tails.any()
    may_be_unnormalized = max(text.characters, default="") >= "\u0300"  # below, each character is its own form
    if not (may_be_garbled or may_be_unnormalized):
        return []
    loose, garbled = _Lines(text), _Lines(text)
    for position, ids in text.pieces("checking the letters of"):
        # A line across two pieces is looked at in two parts.
        if may_be_unnormalized:
            string = text.string(ids)
            if not _is_normalized(string):
                loose.look(position, string)
        if may_be_garbled:
            for begin, line in _lines_at(text, position, ids, leads, tails):
                garbled.garbled(begin, line)
    return [
        *loose.oddity(
            "not normalized",
            "Letters stand there in several pieces (not in Unicode's form NFC), so that one word can be spelled in two "
            "ways: unicodedata.normalize('NFC', text) repairs them",
        ),
        *garbled.oddity(
            "garbled encoding",
            "UTF-8 was read as another encoding (such as 'Ã©' for 'é'): ftfy.fix_encoding(text) repairs it",
        ),
    ]


def _is_normalized(string: str) -> bool:
    return unicodedata.is_normalized("NFC", string)


def _is_loose(line: str, last: int) -> bool:
    return not _is_normalized(line[: last + 1])


class _Lines:
    """Collects lines of one kind: how many, and the first ones."""

    def __init__(self, text: Text) -> None:
        self.text, self.count, self.first, self.examples = text, 0, list[int](), list[str]()

    def add(self, position: int, example: str) -> None:
        self.count += 1
        if len(self.first) < _PLACES:
            self.first.append(position)
            self.examples.append(example)

    def look(self, position: int, string: str) -> None:
        """Add the lines of `string` that are not normalized."""
        for line in string.split("\n"):
            if not _is_normalized(line):
                # Where the shortest beginning that is not normalized ends.
                at = bisect_left(range(len(line)), True, key=partial(_is_loose, line))
                self.add(position + at, line[max(at - 20, 0) : at + 20])
            position += len(line) + 1

    def garbled(self, position: int, line: str) -> None:
        """Add `line` if it reads like one encoding taken for another, with what it may have been."""
        from ftfy import fix_encoding
        from ftfy.badness import BADNESS_RE

        found = BADNESS_RE.search(line)
        if found and fix_encoding(line) != line:
            excerpt = line[max(found.start() - 10, 0) : found.start() + 20]
            self.add(position + found.start(), f"{excerpt} → {fix_encoding(excerpt)}")

    def oddity(self, kind: str, sentence: str) -> list[Oddity]:
        if not self.count:
            return []
        places = tuple(self.text.places(self.first))
        return [Oddity(kind, f"{sentence}; {self.count:,} such line(s).", self.count, tuple(self.examples), places)]


def _garbling_pairs(characters: Sequence[str]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which characters the first byte of two or more in UTF-8 becomes, and which a later one, read as Latin."""
    tails = set(bytes(range(0x80, 0xC0)).decode("latin-1")) | set(
        bytes(range(0x80, 0xC0)).decode("cp1252", errors="ignore")
    )
    lead = np.array([0xC2 <= ord(c) <= 0xF4 for c in characters] + [False])
    return lead, np.array([c in tails for c in characters] + [False])


def _lines_at(
    text: Text, position: int, ids: Ids, leads: npt.NDArray[np.bool_], tails: npt.NDArray[np.bool_]
) -> list[tuple[int, str]]:
    """The lines, each with its position, in which a lead stands before a tail."""
    hits = np.flatnonzero(leads[ids[:-1]] & tails[ids[1:]])
    breaks = np.flatnonzero(ids == text.id_of("\n")) if text.id_of("\n") is not None else np.empty(0, np.int64)
    lines = np.unique(np.searchsorted(breaks, hits))
    begins = np.append(0, breaks + 1)
    ends = np.append(breaks, len(ids))
    return [(position + int(begins[i]), text.string(ids[begins[i] : ends[i]])) for i in lines]
