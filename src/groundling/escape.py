"""Control characters in text from files and models, made harmless for a terminal."""

from __future__ import annotations

_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CONTROL = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}  # their pictures
    | dict.fromkeys(range(128, 160), 65533)
    | dict.fromkeys(map(ord, _TURNING), 0xFFFD)
    | {0x7F: 0x2421}
)

_ESCAPED = {code: f"\\u{code:04x}" for code in _CONTROL if code >= 0x7F}  # JSON escapes the others in any case


def printable(text: str) -> str:
    """`text` with a picture in place of every control character, which a terminal would obey, and U+FFFD for what
    turns the direction of writing; tabs and line ends stay."""
    return text.translate(_CONTROL)


def escape_json(text: str) -> str:
    """JSON in which the characters that `printable` replaces are escaped. It means the same."""
    return text.translate(_ESCAPED)
