"""Chapters: Markdown whose fenced blocks say what they are.

| block | what it is |
|---|---|
| `python` | a listing. All listings of a chapter run, in order, as one program |
| `sh` | a command of groundling, run in the same place |
| `python exercise` | the stub of a function that the learner writes: imports, signature, docstring and `...` |
| `predict NAME` | a question to answer before the figure NAME is measured |
| any other, such as `text` | only shown |

Options follow the language: `figures="a b"` names the variables to show after a listing, `ci="steps=20"` replaces the
values that the listing assigns (or options of the command), so that the whole course runs in a minute, and
`only="shakespeare"` leaves out what holds for this text alone. In prose, `{{name}}` stands for the measured range of a
figure.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

_FENCE = re.compile(r"^```(?P<info>.*)\n(?P<code>(?:.*\n)*?)```$", re.MULTILINE)
_TITLE = re.compile(r"\A# (?P<number>\d+)\. (?P<title>.+)\n")


@dataclass(frozen=True)
class Block:
    """Prose, or a fenced block."""

    kind: str  # prose, python, sh, exercise, predict, or shown
    text: str
    name: str = ""  # of an exercise's function, of a question's figure; or the language of a block that is only shown
    figures: tuple[str, ...] = ()
    ci: dict[str, str] = field(default_factory=dict)
    only: str = ""


@dataclass(frozen=True)
class Chapter:
    number: int
    title: str
    blocks: tuple[Block, ...]

    @property
    def exercises(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.blocks if block.kind == "exercise")

    @property
    def figures(self) -> tuple[str, ...]:
        return tuple(name for block in self.blocks for name in block.figures)


def parse(source: str) -> Chapter:
    """A chapter from its Markdown. Raises `ValueError` if it breaks a rule above."""
    title = _TITLE.match(source)
    if title is None:
        raise ValueError("A chapter begins with a line such as `# 3. Attention`.")
    return Chapter(int(title["number"]), title["title"], tuple(_blocks(source)))


def _blocks(source: str) -> Iterator[Block]:
    end = 0
    for fence in _FENCE.finditer(source):
        if prose := source[end : fence.start()].strip():
            yield Block("prose", prose)
        yield _block(fence["info"], fence["code"].rstrip("\n"))
        end = fence.end()
    if prose := source[end:].strip():
        yield Block("prose", prose)


def _block(info: str, code: str) -> Block:
    words = shlex.split(info)
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := options.keys() - {"figures", "ci", "only"}:
        raise ValueError(f"```{info}: unknown option {', '.join(sorted(unknown))}.")
    figures, only = tuple(options.get("figures", "").split()), options.get("only", "")
    ci = dict(word.split("=", 1) for word in options.get("ci", "").split())
    match [word for word in words if "=" not in word]:
        case ["python", "exercise"]:
            functions = re.findall(r"^def (\w+)\(", code, re.MULTILINE)
            if len(functions) != 1:
                raise ValueError(f"An exercise is one function, not {len(functions)}: {code[:60]!r}.")
            return Block("exercise", code, functions[0])
        case ["predict", name]:
            return Block("predict", code, name)
        case ["python" | "sh" as kind]:
            return Block(kind, code, figures=figures, ci=ci, only=only)
        case shown:
            return Block("shown", code, " ".join(shown))


@cache
def chapters() -> dict[int, Chapter]:
    """All chapters by their number."""
    folder = files("groundling.course") / "chapters"
    sources = (entry.read_text(encoding="utf-8") for entry in folder.iterdir() if entry.name.endswith(".md"))
    found = {chapter.number: chapter for chapter in map(parse, sources)}
    return dict(sorted(found.items()))


def chapter(number: int) -> Chapter:
    """Raises `ValueError` if there is none of this number."""
    if number not in chapters():
        raise ValueError(f"There is no chapter {number}. Choose one of {', '.join(map(str, chapters()))}.")
    return chapters()[number]
