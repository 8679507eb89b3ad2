"""Text from files, models and users in a terminal: control characters made harmless, commands quoted for a shell."""

from __future__ import annotations

import os
import re
import shlex
import sys
from contextlib import suppress

_DIRECTION = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CONTROL = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}  # Unicode's symbols for them
    | dict.fromkeys([*range(0x80, 0xA0), *map(ord, _DIRECTION)], 0xFFFD)
    | {0x7F: 0x2421}
)

_ESCAPED = {code: f"\\u{code:04x}" for code in _CONTROL if code >= 0x7F}  # JSON always escapes the others
_SHOW_CURSOR = b"\x1b[?25h"  # a live display hides it, and a killed process cannot restore it


def printable(text: str) -> str:
    """`text` with a visible symbol in place of every control character except tab and newline, and U+FFFD in place of
    those from U+0080 on and of characters that change the direction of writing."""
    return text.translate(_CONTROL)


def escape_json(text: str) -> str:
    """The same JSON, with the characters that `printable` replaces escaped."""
    return text.translate(_ESCAPED)


_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescaped(text: str) -> str:
    r"""Text from the command line, where \n, \t, \r and \\ stand for what they mean in C. Others stay as they are."""
    with suppress(UnicodeError):  # in the locale C, Python may take the bytes of an argument for ASCII
        text = os.fsencode(text).decode()
    return re.sub(r"\\([ntr\\])", lambda match: _LETTERS[match[1]], text)


def command(*words: object) -> str:
    """A `groundling` command that works when pasted: `command("resume", "my run")` is `groundling resume 'my run'`."""
    return " ".join(["groundling", *(quoted(str(word)) for word in words)])


def quoted(word: str, windows: bool = os.name == "nt") -> str:
    """`word` as a shell reads it: a POSIX shell, or cmd and PowerShell. On one line, and without backticks, so that a
    sentence can put the command between them."""
    if re.fullmatch(r"[\w./:\\-]+" if windows else r"[\w./:@+-]+", word):
        return word
    if windows:  # see CommandLineToArgvW for the backslashes
        return '"' + re.sub(r'(\\*)("|\Z)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), word) + '"'
    if printable(word) == word and not re.search("[`\n\t\ud800-\udfff]", word):
        return shlex.quote(word)
    octal = ("".join(f"\\{byte:03o}" for byte in c.encode("utf-8", "surrogateescape")) for c in word)
    return "$'" + "".join(c if c.isalnum() or c in " /._-" else code for c, code in zip(word, octal, strict=True)) + "'"


def say(sentence: str) -> None:
    """Write a sentence to standard error: to its file descriptor, since a display may hold the lock of `sys.stderr`.
    The terminal may be gone."""
    if sys.__stderr__ is None:  # it was closed when Python started, and the descriptor may be another file's
        return
    with suppress(OSError):
        os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + f"\n{sentence}\n".encode())
