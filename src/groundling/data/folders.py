"""Find the text files below a folder or in a zip archive, and count the other files by reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wcmatch import glob as wcglob

from groundling import storage
from groundling.data.compression import NotText, members
from groundling.data.files import TextFile, file_at, shown
from groundling.data.formats import Reading, detect

GLOB = wcglob.GLOBSTAR | wcglob.BRACE  # as in bash and zsh: ** is any number of folders, {txt,md} either
_NAMED = 3  # files to name for each reason
_NOUNS = (
    "run",
    "export",
    "checkpoint",
    "model",
    "cache",
    "link",
    "environment",
    "object",
    "pointer",
    "notebook",
    "archive",
    "zip",
)
_TOOLS = ("node_modules", "__pycache__")  # what other programs write into a user's folder


def model_in(folder: Path) -> str | None:
    """What a folder is if a program of ours or of others wrote a model or tokens there: `run`, `model` or such."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return None  # listing it tells
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        return "run"
    kinds = {"tokens.bin": "cache", "state.json": "checkpoint", "README.md": "export"}
    if (folder / storage.MANIFEST).is_file():
        return next((kind for name, kind in kinds.items() if (folder / name).exists()), None)
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return "model"
    return None


@dataclass
class Found:
    """The text files of one or more inputs, and what was left out of them."""

    reading: Reading
    glob: str | None = None
    files: list[TextFile] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Reason to names."""
    _seen: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of each file and folder that was read."""

    def leave_out(self, why: str, name: str) -> None:
        self.left_out.setdefault(why, []).append(name)

    def add_file(self, path: Path, name: str) -> None:
        """A file that the user named: it is read, or it is an error."""
        if self._again(path):
            self.leave_out("read already", name)
        elif (inside := members(path, name)) is not None:
            self._add_members(inside, shown(path.name), name)
        else:
            file = file_at(path, name, shown(path.name))
            self.files.append(replace(file, format=detect(file, self.reading)))

    def add_folder(self, root: Path) -> None:
        """Every text file below `root`, in the order of their paths. Links are followed, each file is read once."""
        self._again(root)
        paths = sorted(self._walk(root), key=lambda path: path.relative_to(root).as_posix())
        for path in paths:
            short = shown(path.relative_to(root).as_posix())
            try:
                inside = members(path, short)
            except NotText as error:
                self.leave_out(error.what, short)
                continue
            except OSError:  # unreadable: an error later
                inside = None
            if inside is not None:
                self._add_members(inside, short, shown(path))
            else:
                self._add_if_text(file_at(path, shown(path), short))

    def _add_members(self, inside: list[tuple[str, int, Callable[[], Any]]], short: str, name: str) -> None:
        for member, size, opener in inside:
            if any(part.startswith((".", "__MACOSX")) for part in member.split("/")):
                self.leave_out("hidden", f"{short}/{member}")
            else:
                file = TextFile(f"{name}/{member}", f"{short}/{member}", opener, size)
                self._add_if_text(file)

    def _add_if_text(self, file: TextFile) -> None:
        if self.glob and not matches(file.short, self.glob):
            self.leave_out("not matching --glob", file.short)
            return
        if file.size == 0:
            self.leave_out("empty", file.short)
            return
        try:
            self.files.append(replace(file, format=detect(file, self.reading)))
        except NotText as error:
            if self.glob:  # the user chose this file
                raise
            self.leave_out(error.what, file.short)
        except OSError:  # unreadable or damaged: an error later, when it is read; do not skip it silently
            self.files.append(file)

    def _walk(self, root: Path) -> Iterator[Path]:
        """The files below `root`. Links come after everything else, so that a file keeps its own name."""
        folders, links = [root], list[Path]()
        while folders or links:
            if not folders:
                link = links.pop(0)
                if not link.exists():
                    self.leave_out("dead link", shown(link.relative_to(root).as_posix()))
                elif self._again(link):
                    self.leave_out("read already", shown(link.relative_to(root).as_posix()))
                elif link.is_dir():
                    folders.append(link)
                elif link.is_file():
                    yield link
                continue
            for path in _listed(folders.pop()):
                name = shown(path.relative_to(root).as_posix())
                if path.name.startswith("."):
                    self.leave_out("hidden", name)
                elif path.is_symlink():
                    links.append(path)
                elif path.is_file():
                    if self._again(path):
                        self.leave_out("read already", name)
                    else:
                        yield path
                elif not path.is_dir():
                    self.leave_out("neither a file nor a folder", name)
                elif what := _of_a_tool(path) or model_in(path):
                    self.leave_out(what, name)
                elif not self._again(path):
                    folders.append(path)
            links.sort()

    def _again(self, path: Path) -> bool:
        """Whether this file or folder was seen before, by whatever name."""
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        again = key in self._seen
        self._seen.add(key)
        return again

    @property
    def summary(self) -> str:
        """One line: how many files are read, how many are not, and why."""
        size = storage.in_bytes(sum(file.size for file in self.files))
        return f"Reading {len(self.files):,} file{'s' * (len(self.files) != 1)} ({size}).{self.without}"

    @property
    def without(self) -> str:
        """The files that are not read, as a sentence after another. Empty if there are none."""
        reasons = [
            f"{len(names):,} {why}{'s' * (len(names) > 1 and why.endswith(_NOUNS))}{_some(names, why)}"
            for why, names in self.left_out.items()
        ]
        return f" Left out {sum(map(len, self.left_out.values())):,}: {', '.join(reasons)}." if reasons else ""


def _some(names: list[str], why: str) -> str:
    if set(names) == {why}:
        return ""
    return f" ({', '.join(sorted(names)[:_NAMED])}{', …' if len(names) > _NAMED else ''})"


def _listed(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise type(error)(f"{shown(folder)} cannot be read: {reason}.") from None


def _of_a_tool(folder: Path) -> str | None:
    if folder.name in _TOOLS:
        return folder.name
    if (folder / "pyvenv.cfg").is_file():
        return "virtual environment"
    if (folder / "CACHEDIR.TAG").is_file() or folder.resolve() == storage.cache_folder().resolve():
        return "cache"
    return None


def matches(name: str, pattern: str) -> bool:
    """Whether the path `name`, relative to the corpus's folder, matches. A pattern without a slash matches file names
    in every folder, as in a .gitignore."""
    pattern = pattern.removeprefix("./")
    return wcglob.globmatch(name, pattern, flags=GLOB | wcglob.MATCHBASE | wcglob.FORCEUNIX)
