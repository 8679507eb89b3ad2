"""Characters that look the same and are not: prompts in another Unicode form, and what to write for an unknown one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence

from groundling.escape import quoted

_LATIN, _CYRILLIC = "AaBCcEeHIiJjKMOoPpSsTXxYy", "АаВСсЕеНІіЈјКМОоРрЅѕТХхУу"
_GREEK = {"Α": "A", "Β": "B", "Ε": "E", "Ζ": "Z", "Η": "H", "Ι": "I", "Κ": "K", "Μ": "M", "Ν": "N", "Ο": "O", "ο": "o"}
_PLAIN = str.maketrans(
    dict.fromkeys("“”„‟″«»", '"')
    | dict.fromkeys("‘’‚‛′`´", "'")
    | dict.fromkeys("‐‑‒–—―−", "-")
    | dict.fromkeys("\r\x85\u2028\u2029", "\n")
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", "")  # invisible
    | dict(zip(_CYRILLIC, _LATIN, strict=True))
    | _GREEK
)
_FORMS = ("NFC", "NFD")
_SHORT = 200  # characters of a text that a message may quote


def plain(text: str) -> str:
    """The plainest text that looks the same: straight quotes, Latin letters, no ligatures, nothing invisible."""
    return unicodedata.normalize("NFKC", text.translate(_PLAIN)).translate(_PLAIN)


def fit_prompt(prompt: str, knows: Callable[[str], bool], normalizer: str = "") -> tuple[str, str]:
    """`prompt` in the Unicode form and with the line ends whose characters are known, and a sentence if it differs.

    Both look the same and mean the same, so nothing is lost. `normalizer` is the form that the tokenizer works in.
    """
    said = []
    for form in ("LF", *_FORMS):
        fitted = _converted(prompt, form)
        unknown, still = ({c for c in set(text) if not knows(c)} for text in (prompt, fitted))
        if not (still < unknown or (form == normalizer and fitted != prompt)):
            continue
        if form == "LF":
            said.append("The prompt's line ends were converted from CR LF to LF.")
        else:
            start = next(i for i, (a, b) in enumerate(zip(prompt, fitted + " ", strict=False)) if a != b)
            said.append(
                f"The prompt was converted to the Unicode form {form}, as the tokenizer knows it: "
                f"{_forms_of(_cluster(prompt, start), form)}."
            )
        prompt = fitted
    return prompt, " ".join(said)


def what_to_do(text: str, position: int, known: Sequence[str]) -> str:
    """How to replace the unknown character at `position`, as the beginning of a sentence: `Remove it`."""
    cluster = _cluster(text, position)
    for form in _FORMS:
        if (fitted := _converted(cluster, form)) != cluster and set(fitted) <= set(known):
            return f"The vocabulary has it in the Unicode form {form}, {_forms_of(cluster, form)}: convert the text"
    character = text[position]
    if not (alike := _alike(character, known)):
        return "It is invisible: remove it" if plain(character) == "" else "Remove it"
    there = " or ".join(map(described, alike))
    if len(text) <= _SHORT:
        fitted = "".join(c if c in known else next(iter(_alike(c, known)), plain(c)) for c in text)
        if set(fitted) <= set(known):
            return f"The vocabulary has {there}: write {quoted(fitted)}"
    return f"The vocabulary has {there}: use that"


def described(text: str) -> str:
    """Such as `'“' (U+201C, left double quotation mark)`."""
    codes = " ".join(f"U+{ord(c):04X}" for c in text)
    name = unicodedata.name(text, "").lower() if len(text) == 1 and not text.isascii() else ""
    return f"{text!r} ({codes}{', ' * bool(name)}{name})"


def _converted(text: str, form: str) -> str:
    if form == "LF":
        return text.replace("\r\n", "\n")
    return unicodedata.normalize("NFC" if form == "NFC" else "NFD", text)


def _alike(character: str, known: Iterable[str]) -> list[str]:
    """What looks like `character`, or is it in the other case, and is known."""
    look, known = plain(character), set(known)
    if look and look != character and set(look) <= known:
        return [look]
    return sorted(c for c in known if c != character and look and plain(c) == look) or [
        c for c in [character.swapcase()] if c in known
    ]


def _forms_of(cluster: str, form: str) -> str:
    """Such as `'é' as 2 characters (U+0065 U+0301) is 'é' as 1 (U+00E9)`."""
    sizes = [
        f"{len(text)} character{'s' * (len(text) > 1)} ({' '.join(f'U+{ord(c):04X}' for c in text)})"
        for text in (cluster, _converted(cluster, form))
    ]
    return f"{cluster!r} as {sizes[1]} instead of {sizes[0]}"


def _cluster(text: str, position: int) -> str:
    """The letter with its marks, or the syllable, to which the character at `position` belongs."""
    start, stop = position, position + 1
    while start > 0 and continues(text[start]):
        start -= 1
    while stop < len(text) and continues(text[stop]):
        stop += 1
    return text[start:stop]


def continues(c: str) -> bool:
    """Whether the character belongs to the one before it: a mark, or a vowel or last letter of Hangul."""
    return unicodedata.combining(c) > 0 or "\u1161" <= c <= "\u11c2"
