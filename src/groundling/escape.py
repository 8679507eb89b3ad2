"""Make control characters in text from files and models harmless for a terminal."""

from __future__ import annotations

_DIRECTION = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CONTROL = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}  # Unicode's symbols for them
    | dict.fromkeys([*range(0x80, 0xA0), *map(ord, _DIRECTION)], 0xFFFD)
    | {0x7F: 0x2421}
)

_ESCAPED = {code: f"\\u{code:04x}" for code in _CONTROL if code >= 0x7F}  # JSON always escapes the others


def printable(text: str) -> str:
    """`text` with a visible symbol in place of every control character except tab and newline, and U+FFFD in place of
    those from U+0080 on and of characters that change the direction of writing."""
    return text.translate(_CONTROL)


def escape_json(text: str) -> str:
    """The same JSON, with the characters that `printable` replaces escaped."""
    return text.translate(_ESCAPED)
