"""What a stranger may have made, met with bounds: JSON, the folder of a run, text for the terminal.

SECURITY.md says what is promised; most of it is kept here.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST_JSON = 4 * 2**20  # bytes of settings, state or manifest; parsed, they may take twenty times as much memory
LARGEST_TOKENIZER = 64 * 2**20  # bytes; the largest published one has 33 million
LARGEST_LINE = 4 * 2**20  # bytes of a line of a history
LARGEST_HISTORY = 2**30  # bytes
_DEEPEST = 50  # lists and objects in one another; ours go to 7


def read_bytes(path: Path, largest: int) -> bytes:
    """A file's content. Raises ValueError if it has more bytes than `largest`, before they are read."""
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{path} is larger than the {largest:,} bytes that such a file can have.")
    return content


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and content of each line of a history that ends as lines do: what a crash cut short is left out.

    Raises ValueError if the file, or a line of it, is too long for one.
    """
    if path.stat().st_size > LARGEST_HISTORY:
        raise ValueError(f"{path} is larger than the {LARGEST_HISTORY:,} bytes that such a file can have.")
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LARGEST_LINE + 1)
            if len(line) > LARGEST_LINE:
                raise ValueError(f"{path} is damaged: line {number} has more than {LARGEST_LINE:,} bytes.")
            if not line.endswith(b"\n"):
                return
            yield number, line


def parse(content: bytes | str, what: str) -> Any:
    """The value of some JSON.

    Raises ValueError, naming `what` it is, if it is none, says a name of an object twice, or is nested too deep.
    """
    try:
        text = content.decode() if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError(f"{what} is damaged: it is nested too deep.") from None
    except ValueError as error:
        raise ValueError(f"{what} is damaged: it is not readable as JSON ({error}).") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in _children(node)]
        if not level:
            return value
    raise ValueError(f"{what} is damaged: it is nested too deep.")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"it has {names.most_common(1)[0][0][:80]!r} twice")
    return value


def _children(node: Any) -> Any:
    return node.values() if type(node) is dict else node if type(node) is list else ()


def check_folder(folder: Path) -> None:
    """Raise ValueError if something that lies in `folder` is no file or folder of its own: a link that leads out of it
    (whoever writes there would write elsewhere), a pipe (whoever reads it would wait for ever), a device."""
    if not folder.is_dir():
        return
    inside = os.path.realpath(folder)
    for entry in sorted(os.scandir(inside), key=lambda entry: entry.name):
        target = os.path.realpath(entry.path)
        if not target.startswith(os.path.join(inside, "")):
            raise ValueError(f"{entry.path} is a link that leads out of its folder, to {target}: remove it.")
        if os.path.exists(target):
            mode = os.stat(target).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(f"{entry.path} is neither a file nor a folder: remove it.")
