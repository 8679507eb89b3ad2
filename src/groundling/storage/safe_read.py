"""Safe reading of untrusted files: JSON with limits, and the folder of a run. See SECURITY.md."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST_JSON = 4 * 2**20  # bytes of settings, state or manifest; parsed, they may need twenty times as much memory
LARGEST_TOKENIZER = 64 * 2**20  # bytes; the largest published one has 33 million
LARGEST_LINE = 4 * 2**20  # bytes of a line in a JSON Lines file
LARGEST_HISTORY = 2**30  # bytes
_DEEPEST = 50  # nested lists and objects; ours go to 7


def read_bytes(path: Path, largest: int) -> bytes:
    """A file's content. Raises ValueError if it has more bytes than `largest`, without reading all of it."""
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{path} is larger than {largest:,} bytes, the limit for such a file.")
    return content


def unix_lines(path: Path, largest: int = LARGEST_TOKENIZER) -> bytes:
    """A JSON file's content as it was saved, though git or an editor may have changed its line ends to CRLF since."""
    return read_bytes(path, largest).replace(b"\r", b"")  # in texts it is escaped


def is_saved_json(path: Path, sha256: str) -> bool:
    """Whether a JSON file is what was saved, with that hash, but for its line ends."""
    return path.suffix == ".json" and hashlib.sha256(unix_lines(path)).hexdigest() == sha256


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and content of each complete line of a JSON Lines file. A last line that a crash cut short is left out.

    Raises ValueError if the file or a line is too long.
    """
    if path.stat().st_size > LARGEST_HISTORY:
        raise ValueError(f"{path} is larger than {LARGEST_HISTORY:,} bytes, the limit for such a file.")
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LARGEST_LINE + 1)
            if len(line) > LARGEST_LINE:
                raise ValueError(f"{path} is damaged: line {number} has more than {LARGEST_LINE:,} bytes.")
            if not line.endswith(b"\n"):
                return
            yield number, line


def parse(content: bytes, what: str) -> Any:
    """Parse JSON. Raises ValueError that names `what` if it is not JSON, repeats a name in an object, or is nested too
    deeply."""
    try:
        value = json.loads(content.decode(), object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError(f"{what} is damaged: it is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{what} is damaged: it is not valid JSON ({error}).") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in _children(node)]
        if not level:
            return value
    raise ValueError(f"{what} is damaged: it is nested too deeply.")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"it has {names.most_common(1)[0][0][:80]!r} twice")
    return value


def _children(node: Any) -> Any:
    return node.values() if type(node) is dict else node if type(node) is list else ()


def check_folder(folder: Path, *stores: Path) -> None:
    """Raise ValueError if `folder` has an entry that is not a file or folder of its own: a link that leads out of it
    (writing there would write elsewhere), a pipe (reading it would wait forever), or a device. Links may lead into the
    folders `stores`, too."""
    if not folder.is_dir():
        return
    inside = os.path.realpath(folder)
    allowed = tuple(os.path.join(os.path.realpath(each), "") for each in (folder, *stores))
    for name in sorted(os.listdir(inside)):
        path = os.path.join(inside, name)
        target = os.path.realpath(path)
        if not target.startswith(allowed):
            raise ValueError(
                f"{path} is a link that leads out of its folder, to {target}. Remove it, or put what you need of its "
                "target there. Only the whole folder may be a link."
            )
        if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
            raise ValueError(f"{path} is neither a file nor a folder. Remove it.")
