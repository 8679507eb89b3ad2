"""What a power cut may leave of a log of operations, as a file system may have it that promises no more than POSIX.

What was not forced to the disk is there, or not, or in part: each content and each name for itself, in any order.
(Pillai et al., "All File Systems Are Not Created Equal", 2014.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

Operation = tuple[str, Path, Any]


@dataclass
class File:
    content: bytes = b""
    safe: bytes = b""  # what is on the disk for certain

    def after(self, random: Random | None) -> bytes:
        """As it may be found after a power cut; without `random`, all that was not safe is lost."""
        new = self.content[len(self.safe) :]
        if random is None or not new:
            return self.safe
        middle = random.randrange(len(new))
        rest = random.choice([new, b"", new[:middle], bytes(len(new)), bytes(middle) + new[middle:]])
        return self.safe + rest


@dataclass
class Folder:
    """`changes` are those of its names that are not on the disk for certain; None: the name is gone."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    safe: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, change: dict[str, File | Folder | None]) -> None:
        self.changes.append(change)
        self.names = changed(self.names, change)

    def after(self, random: Random | None) -> dict[str, File | Folder]:
        names = self.safe
        for change in self.changes:
            if random is not None and random.random() < 0.5:
                names = changed(names, change)
        return names


def changed(names: dict[str, File | Folder], change: dict[str, File | Folder | None]) -> dict[str, File | Folder]:
    return {name: node for name, node in (names | change).items() if node is not None}


class World:
    """The files and folders below `root`, and what of them is safe."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Folder()

    def _find(self, path: Path) -> Any:
        node: Any = self.top
        for name in path.relative_to(self.root).parts:
            node = node.names[name]
        return node

    def do(self, operation: Operation) -> None:
        name, path, detail = operation
        above = self._find(path.parent) if path != self.root else None
        if name == "make_folder":
            above.change({path.name: Folder()})
        elif name in ("write", "fill"):
            if path.name not in above.names:
                above.change({path.name: File()})
            self._find(path).content += detail
        elif name == "sync":
            node = self._find(path)
            if isinstance(node, File):
                node.safe = node.content
            else:
                node.safe, node.changes = node.names, []
        elif name == "rename":
            assert detail.parent == path.parent
            above.change({path.name: None, detail.name: self._find(path)})
        else:
            assert name == "delete"
            above.change({path.name: None})

    def cut(self, target: Path, random: Random | None) -> None:
        """Write to `target` what is found after a power cut; without `random`, only what is safe."""

        def lay(folder: Folder, place: Path) -> None:
            place.mkdir()
            for name, node in folder.after(random).items():
                if isinstance(node, File):
                    (place / name).write_bytes(node.after(random))
                else:
                    lay(node, place / name)

        lay(self.top, target)


def without(log: list[Operation | str], lost: Callable[[Path], bool]) -> list[Operation | str]:
    """The log as it would be if `sync` were forgotten for such paths."""
    return [entry for entry in log if isinstance(entry, str) or not (entry[0] == "sync" and lost(entry[1]))]
