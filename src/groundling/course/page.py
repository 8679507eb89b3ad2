"""A chapter as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from groundling.course.chapter import Chapter, chapters
from groundling.course.measured import filled
from groundling.reporting.html import render


def page(chapter: Chapter) -> str:
    """The page, with links to the chapters before and after it, which stand beside it."""
    near = {n: chapters()[n] for n in (chapter.number - 1, chapter.number + 1) if n in chapters()}
    return render(
        "course/page.html",
        chapter=chapter,
        parts=list(_parts(chapter)),
        before=near.get(chapter.number - 1),
        after=near.get(chapter.number + 1),
        light=_colours("default"),
        dark=_colours("github-dark"),
    )


def _parts(chapter: Chapter) -> Iterator[tuple[str, str, str]]:
    """Kind, name and HTML of each block."""
    for block in chapter.blocks:
        match block.kind:
            case "prose":
                yield block.kind, "", _markdown().render(filled(block.text))
            case "predict":
                yield block.kind, block.name, _markdown().renderInline(block.text)
            case kind:
                language = {"exercise": "python", "shown": block.name}.get(kind, kind)
                yield kind, block.name, _highlighted(block.text, language)


@cache
def _markdown() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table")


def _highlighted(code: str, language: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language or "text")
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    return highlight(code, lexer, HtmlFormatter(cssclass="code"))


def _colours(style: str) -> str:
    from pygments.formatters import HtmlFormatter

    return HtmlFormatter(style=style, cssclass="code").get_style_defs(".code")
