"""The characters of a text: scripts, languages, the rarest ones, and probable accidents."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from unicodedata import is_normalized

import numpy as np

from groundling.checkup.text import I64, PIECE, Place, Text
from groundling.data.characters import ODD, line_ends, odd_kind

RAREST = 20
_PLACES = 3  # shown for a character or oddity, at most
_LANGUAGE_SAMPLES, _SAMPLE_CHARACTERS, _ENOUGH_LETTERS = 200, 500, 60
_UNNAMED = dict.fromkeys(map(chr, (*range(32), *range(127, 160))), "control character")
_UNNAMED |= {"\t": "tab", "\n": "line feed", "\r": "carriage return", "\0": "null", "\x1b": "escape"}
_ODD_LINES = {
    "not normalized": "Letters are split into several characters (not in Unicode's form NFC), so one word can have two "
    "spellings: unicodedata.normalize('NFC', text) repairs them",
    "garbled encoding": "UTF-8 was decoded with another encoding (such as 'Ã©' for 'é'): ftfy.fix_encoding(text) "
    "repairs it",
}
# How UTF-8 looks when it is decoded as Latin-1 or Windows-1252: the first byte of a character, then a later one.
_LATER_BYTES = bytes(range(0x80, 0xC0))
_LATER = _LATER_BYTES.decode("latin-1") + _LATER_BYTES.decode("cp1252", errors="ignore")
_GARBLED = re.compile(f"[\xc2-\xf4][{_LATER}]")


@dataclass(frozen=True)
class Character:
    """One character of the text and its first places."""

    character: str
    code: str  # such as U+00E9
    name: str
    count: int
    places: tuple[Place, ...]

    @property
    def shown(self) -> str:
        """The character itself, or its code if it is invisible."""
        return self.character if self.character.isprintable() and self.character != " " else self.code


@dataclass(frozen=True)
class Oddity:
    """Something that is more often an accident than intended."""

    kind: str
    sentence: str  # what it is, how often it occurs, and what to do
    count: int
    examples: tuple[str, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Characters:
    """The figures of a text.

    `alphabet` is the number of different characters. `scripts` maps Unicode's names to shares of all characters;
    `Common` is what all scripts use: spaces, digits, punctuation. `languages` maps ISO 639-1 codes to shares of the
    samples that were judged, and is empty if the text is too short to tell.
    """

    characters: int
    bytes: int  # in UTF-8
    lines: int
    alphabet: int
    scripts: dict[str, float]
    languages: dict[str, float]
    rarest: tuple[Character, ...]
    oddities: tuple[Oddity, ...]


def describe(text: Text) -> Characters:
    """Count all characters of the text, then find rare and odd ones."""
    feed, carriage = text.id_of("\n"), text.id_of("\r")
    size = len(text.characters) + 1  # and the end mark
    counts, crlf = np.zeros(size, dtype=np.int64), 0
    for _, ids in text.pieces("counting", more=1):
        counts += np.bincount(ids[:PIECE], minlength=size)
        if feed is not None and carriage is not None:
            crlf += int(np.count_nonzero((ids[:-1] == carriage) & (ids[1:] == feed)))
    counts = counts[:-1]
    by_character = dict(zip(text.characters, counts.tolist(), strict=True))
    odd = defaultdict[str, list[int]](list)
    for i, character in enumerate(text.characters):
        if kind := odd_kind(character):
            odd[kind].append(i)
    rarest = np.argsort(counts, kind="stable")[:RAREST].tolist()
    places = _first_places(text, {*rarest, *(i for ids in odd.values() for i in ids)})
    return Characters(
        characters=int(counts.sum()),
        bytes=sum(n * len(character.encode()) for character, n in by_character.items()),
        lines=by_character.get("\n", 0) + _unfinished_lines(text, feed),
        alphabet=len(counts),
        scripts=_scripts(by_character),
        languages=_languages(text),
        rarest=tuple(_character(text, i, counts, places) for i in rarest),
        oddities=(
            *(_character_oddity(text, kind, ids, counts, places) for kind, ids in odd.items()),
            *_line_ends(by_character.get("\n", 0), by_character.get("\r", 0), crlf),
            *_lines_with_oddities(text),
        ),
    )


def _first_places(text: Text, wanted: set[int]) -> dict[int, list[int]]:
    """The first few positions of each of the wanted ids."""
    places = defaultdict[int, list[int]](list)
    for position, ids in text.pieces("searching"):
        missing = [i for i in wanted if len(places[i]) < _PLACES]
        if not missing:
            break
        table = np.zeros(len(text.characters) + 1, dtype=bool)
        table[missing] = True
        hits = np.flatnonzero(table[ids])
        for i in np.unique(ids[hits]).tolist():
            places[i] += (position + hits[ids[hits] == i][: _PLACES - len(places[i])]).tolist()
    return places


def _unfinished_lines(text: Text, feed: int | None) -> int:
    """Documents whose last line has no line feed."""
    mark = int(text.corpus.n_eos > 0)  # tokens after each document
    stretches = pairwise([0, *text.ends.tolist()])
    return sum(bool(text.read(end - mark - 1, end)[0] != feed) for begin, end in stretches if end - mark > begin)


def _scripts(counts: dict[str, int]) -> dict[str, float]:
    from fontTools.unicodedata import script, script_name

    totals = Counter[str]()
    for character, count in counts.items():
        totals[script_name(script(character)).replace("_", " ")] += count
    return {name: count / max(totals.total(), 1) for name, count in totals.most_common()}


def _languages(text: Text) -> dict[str, float]:
    """The shares of evenly spread samples that py3langid takes for each language."""
    from py3langid import classify

    found = Counter[str]()
    n = max(1, min(_LANGUAGE_SAMPLES, text.length // _SAMPLE_CHARACTERS))
    for start in np.linspace(0, max(text.length - _SAMPLE_CHARACTERS, 0), n).astype(int).tolist():
        sample = text.quote(start, _SAMPLE_CHARACTERS)
        if sum(map(str.isalpha, sample)) >= _ENOUGH_LETTERS:
            found[str(classify(sample)[0])] += 1
    # One sample among many is more likely a mistake than a language.
    kept = {code: n for code, n in found.most_common() if n > 1 or found.total() < 10}
    return {code: n / sum(kept.values()) for code, n in kept.items()}


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"


def _character(text: Text, i: int, counts: I64, places: dict[int, list[int]]) -> Character:
    character = text.characters[i]
    name = unicodedata.name(character, _UNNAMED.get(character, "without a name"))
    return Character(character, _code(character), name, int(counts[i]), tuple(text.places(places[i])))


def _character_oddity(text: Text, kind: str, ids: list[int], counts: I64, places: dict[int, list[int]]) -> Oddity:
    n = int(counts[ids].sum())
    first = sorted(position for i in ids for position in places[i])[:_PLACES]
    codes = tuple(_code(text.characters[i]) for i in ids[:RAREST])
    return Oddity(kind, f"{ODD[kind]}. Found {n:,}.", n, codes, tuple(text.places(first)))


def _line_ends(feeds: int, returns: int, pairs: int) -> list[Oddity]:
    if not returns:
        return []
    present = line_ends(feeds, returns, pairs)
    listed = ", ".join(f"{n:,} {name}" for name, n in present.items())
    if len(present) > 1:
        kind = "mixed line ends"
        sentence = f"Lines end in different ways ({listed}): use one, or the model learns to mix them."
    else:
        kind = "carriage returns"
        sentence = f"Lines end with a carriage return ({listed}): the vocabulary has one character more than it needs."
    return [Oddity(kind, sentence, min(present.values()), tuple(present), ())]


def _lines_with_oddities(text: Text) -> list[Oddity]:
    counts, first = Counter[str](), defaultdict[str, list[tuple[int, str]]](list)
    for kind, position, example in _odd_lines(text):
        counts[kind] += 1
        if counts[kind] <= _PLACES:
            first[kind].append((position, example))
    return [
        Oddity(
            kind=kind,
            sentence=f"{problem}. Lines affected: {counts[kind]:,}.",
            count=counts[kind],
            examples=tuple(example for _, example in first[kind]),
            places=tuple(text.places([position for position, _ in first[kind]])),
        )
        for kind, problem in _ODD_LINES.items()
        if counts[kind]
    ]


def _odd_lines(text: Text) -> Iterator[tuple[str, int, str]]:
    """Kind, position and an excerpt of each line that has one of the problems in _ODD_LINES."""
    from ftfy import fix_encoding
    from ftfy.badness import BADNESS_RE

    may_be_unnormalized = max(text.characters, default="") >= "\u0300"  # lower characters are all in form NFC
    may_be_garbled = re.search("[\xc2-\xf4]", text.characters) and re.search(f"[{_LATER}]", text.characters)
    if not (may_be_garbled or may_be_unnormalized):
        return
    for position, ids in text.pieces("checking the letters of"):
        # A line across two pieces is checked in two parts.
        for line in text.string(ids).split("\n"):
            if may_be_unnormalized and not is_normalized("NFC", line):
                # The last character of the shortest beginning that is not normalized.
                at = bisect_left(range(len(line)), True, key=lambda last: not is_normalized("NFC", line[: last + 1]))
                yield "not normalized", position + at, line[max(at - 20, 0) : at + 20]
            bad = BADNESS_RE.search(line) if may_be_garbled and _GARBLED.search(line) else None
            if bad and fix_encoding(line) != line:
                excerpt = line[max(bad.start() - 10, 0) : bad.start() + 20]
                yield "garbled encoding", position + bad.start(), f"{excerpt} → {fix_encoding(excerpt)}"
            position += len(line) + 1
