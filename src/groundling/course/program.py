"""A chapter as one Python program of `# %%` cells, which editors and notebooks know, to run and to change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from groundling.course.chapter import Block, Chapter
from groundling.course.measured import filled

Scale = Literal["class", "ci"]

HEAD = "from groundling.course import checked, course_text, predict, shell, show"


@dataclass(frozen=True)
class Cell:
    kind: Literal["markdown", "code"]
    text: str


def cells(
    chapter: Chapter, scale: Scale = "class", seed: int | None = None, shakespeare: bool = True
) -> Iterator[Cell]:
    """The chapter's cells. `ci` replaces what its listings say to replace at this scale, and a `seed` the value of all
    variables and options of this name. Without `shakespeare`, listings about that text are left out."""
    used = False
    for block in chapter.blocks:
        if block.only == "shakespeare" and not shakespeare:
            continue
        values = {**(block.ci if scale == "ci" else {}), **({} if seed is None else {"seed": str(seed)})}
        text = block.text
        match block.kind:
            case "prose":
                yield Cell("markdown", filled(text))
                if not used:  # below the title
                    used = True
                    yield Cell("code", HEAD)
            case "shown":
                yield Cell("markdown", f"```{block.name}\n{text}\n```")
            case "python":
                shown = ", ".join(f"{name}={name}" for name in block.figures)
                yield Cell("code", _assigned(block, values) + (f"\nshow({shown})" if shown else ""))
            case "sh":
                yield Cell("code", "\n".join(f"shell({_with_options(line, values)!r})" for line in text.splitlines()))
            case "exercise":
                yield Cell("code", text)
                yield Cell("code", f"{block.name} = checked({block.name})")
            case "predict":
                yield Cell("code", f"predict({block.name!r}, {text!r})")


def _assigned(block: Block, values: dict[str, str]) -> str:
    """The listing with other values where it assigns these names at the start of a line."""
    text = block.text
    for name, value in values.items():
        text, found = re.subn(rf"^({name} = )[^#\n]*?( *#.*)?$", rf"\g<1>{value}\g<2>", text, flags=re.MULTILINE)
        if not found and name in block.ci:
            raise ValueError(f"The listing does not assign {name}: {block.text[:60]!r}.")
    return text


def _with_options(command: str, values: dict[str, str]) -> str:
    """The command with other values of its options, or with more options."""
    for name, value in values.items():
        option = f"--{name}"
        command, found = re.subn(rf"(?<= ){option} \S+", f"{option} {value}", command)
        if not found and name != "seed":
            command += f" {option} {value}"
    return command


def program(chapter: Chapter, scale: Scale = "class", seed: int | None = None, shakespeare: bool = True) -> str:
    """The chapter as a Python file."""
    parts = []
    for cell in cells(chapter, scale, seed, shakespeare):
        if cell.kind == "markdown":
            comment = "\n".join(f"# {line}".rstrip() for line in cell.text.splitlines())
            parts.append(f"# %% [markdown]\n{comment}\n")
        else:
            parts.append(f"# %%\n{cell.text}\n")
    return "\n".join(parts)
