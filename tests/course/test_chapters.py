"""Every listing of every chapter runs, at the small scale and on a text of one's own."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from groundling.course import progress
from groundling.course.chapter import chapters, parse
from groundling.course.program import program

CHAPTERS = list(chapters())


@pytest.mark.parametrize("number", CHAPTERS)
def test_all_listings_run(number: int, text_file: Path) -> None:
    progress.write(progress.Progress(text=str(text_file)))
    file = Path(f"chapter_{number}.py")
    file.write_text(program(chapters()[number], "ci", seed=1, shakespeare=False), encoding="utf-8")
    runpy.run_path(str(file), run_name="__main__")
    shown = {name for block in chapters()[number].blocks if not block.only for name in block.figures}
    assert shown == progress.read().figures.keys()


@pytest.mark.parametrize("number", CHAPTERS)
def test_prose_names_only_figures_that_a_listing_measures(number: int) -> None:
    chapter = chapters()[number]
    prose = "\n".join(block.text for block in chapter.blocks if block.kind == "prose")
    asked = [block.name for block in chapter.blocks if block.kind == "predict"]
    assert {*re.findall(r"\{\{(\w+)\}\}", prose), *asked} <= set(chapter.figures)


def test_names_of_figures_and_exercises_occur_once_in_the_course() -> None:
    names = [name for chapter in chapters().values() for name in (*chapter.exercises, *chapter.figures)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("no title", "begins with a line"),
        ("# 1. A\n```python figure=\"a\"\n```\n", "unknown option figure"),
        ("# 1. A\n```python exercise\nx = 1\n```\n", "one function, not 0"),
    ],
)  # fmt: skip
def test_a_chapter_that_breaks_the_rules_is_refused(source: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(source)
