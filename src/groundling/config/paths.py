"""Paths as people type them: `~` is replaced, and what a shell was expected to replace but did not is explained."""

from __future__ import annotations

import os
import re
from pathlib import Path

_VARIABLE = re.compile(r"\$\{?[A-Za-z_][\w:]*\}?|%[A-Za-z_]\w*%")  # of POSIX shells, PowerShell and cmd
QUOTES = "'\"`“”„‘’‚«»"
DASHES = "–—−"  # not the hyphen that begins an option


def user_path(option: str, path: str | os.PathLike[str]) -> Path:
    """`path`, with `~` replaced by the home folder. Raises ValueError if it is empty, or not what the user meant."""
    text = os.fspath(path)
    if not text:
        raise ValueError(f"{option} is empty. Give a path.")
    expanded = os.path.expanduser(text)
    if not os.path.lexists(expanded) and (explanation := slip(text)):
        raise ValueError(f"{option} {text!r}: {explanation}")
    return Path(expanded)


def output_file(option: str, path: str | os.PathLike[str]) -> Path:
    """The path of a file to write. Raises ValueError if that is impossible, before long work would be lost."""
    file = user_path(option, path)
    if file.is_dir():
        raise ValueError(f"{option} {file} is a folder. Give the name of a file in it.")
    if file.exists() and not file.is_file():  # /dev/null would be replaced
        raise ValueError(f"{option} {file} is a device or a pipe. Give the name of a file.")
    if not (folder := file.absolute().parent).is_dir():
        raise ValueError(f"{option} {file}: the folder {folder} does not exist. Create it first.")
    return file


def slip(path: str) -> str:
    """A sentence about what is wrong with a path that does not exist, if it was written for a shell or pasted."""
    if path == "-":
        return "standard input and output cannot be used here. Give a path."
    if variable := _VARIABLE.search(path):
        why = "Single quotes prevent it: use double ones, or write" if variable[0][0] == "$" else "Write"
        return f"your shell did not replace {variable[0]}. {why} what it stands for."
    if path[:1] in QUOTES:
        return "the quotes are part of the path. Use plain double quotes, or none."
    if path[:1] in DASHES:
        return "it begins with a dash that is not a hyphen. Options begin with two hyphens, as in --help."
    if re.match(r"\w\w+:/", path):  # not C:/, and pathlib drops one of two slashes
        return "it is a URL. Give a path on this machine."
    if path != path.strip():
        return "it begins or ends with a space or line break."
    if "*" in path:
        return "it is a pattern that no file matches. Give a path."
    return ""
