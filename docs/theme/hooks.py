"""Hooks of MkDocs: pages for what lies outside of docs/, and the links that lead there.

A link such as `../src/groundling/model/gpt.py` opens the file on a code host. In the site, each file that a page links
to has a page of its own below `source/`, and the link leads to it. The chapters of the course become pages too.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

if TYPE_CHECKING:
    from groundling.course.chapter import Block

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "src" / "groundling" / "course" / "chapters"
LANGUAGES = {".py": "python", ".sh": "sh", ".toml": "toml", ".yml": "yaml"}

_LINK = re.compile(r"(?<=\]\()(?P<path>[^()\s#:]+)(?=[#)])")
_LOADED = re.compile(
    r'<(?:(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc|link\b[^>]*\bhref)="(?:https?:)?//[^>]*>'
)

_pages: dict[Path, str] = {}  # the place in the site of each page's source
_folders: dict[str, Path] = {}  # where the links of a page start


def on_config(config: MkDocsConfig) -> None:
    config.mdx_configs["toc"]["slugify"] = slug


def slug(title: str, separator: str) -> str:
    """The anchor of a heading, as on GitHub."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", separator)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the chapters, and every file that a page links to, and that those link to."""
    _pages.clear()
    _folders.clear()
    for file in files:
        if file.abs_src_path and file.inclusion.is_included():
            _enter(Path(file.abs_src_path), file)
    chapters = sorted(CHAPTERS.glob("*.md"))
    for path in chapters:
        file = File.generated(config, f"course/{path.name}", content=_chapter(path.read_text(encoding="utf-8")))
        files.append(_enter(path, file))
    _fill_course(config, [f"course/{path.name}" for path in chapters])
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for path in set(_targets(page.content_string, _folders[page.src_uri])) - _pages.keys():
            if path.exists() and path.is_relative_to(ROOT):
                file = _enter(path, _outside(path, config))
                files.append(file)
                waiting += [file] if file.is_documentation_page() else []


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead each link to the page of its file."""
    uri = page.file.src_uri

    def led(link: re.Match[str]) -> str:
        target = _pages.get(_path(_folders[uri], link["path"]))
        return link[0] if target is None else posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return _LINK.sub(led, markdown)


def on_post_page(output: str, page: Page, **_: Any) -> None:
    """Refuse a page that loads something from another host. Links to other hosts are fine."""
    if loaded := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {loaded[0]}")


def _enter(path: Path, file: File) -> File:
    path = _path(path, "")
    _pages[path], _folders[file.src_uri] = file.src_uri, path if path.is_dir() else path.parent
    return file


def _path(folder: Path, link: str) -> Path:
    return Path(os.path.normpath(folder / link))


def _targets(markdown: str, folder: Path) -> Iterator[Path]:
    return (_path(folder, link["path"]) for link in _LINK.finditer(markdown))


def _outside(path: Path, config: MkDocsConfig) -> File:
    """A file of the site for one outside of docs/: Markdown as a page, code and folders shown on one, others as is."""
    name = path.relative_to(ROOT).as_posix()
    language = LANGUAGES.get(path.suffix)
    if not path.is_dir() and not language:
        return File.generated(config, f"source/{name}", abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
    shown = _folder(path) if path.is_dir() else _code(path.read_text(encoding="utf-8"), language)
    content = f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# `{name}`\n\n{shown}"
    return File.generated(config, f"source/{name}.md", content=content, inclusion=InclusionLevel.NOT_IN_NAV)


def _code(text: str, language: str | None) -> str:
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _folder(path: Path) -> str:
    """What is in a folder of code: its docstring, and each module with the first sentence of its own."""
    about = {file: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) for file in path.rglob("*.py")}
    rows = [
        f"| [`{name}`]({name}) | {_first_line(text)} |"
        for name, text in sorted((file.relative_to(path).as_posix(), text) for file, text in about.items())
    ]
    return "\n".join([about.get(path / "__init__.py") or "", "", "| file | what it is |", "|---|---|", *rows, ""])


def _first_line(text: str | None) -> str:
    return (text or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _fill_course(config: MkDocsConfig, uris: list[str]) -> None:
    """The chapters in the navigation, after what is there about the course."""
    assert config.nav is not None
    config.nav = [{"Course": entry["Course"] + uris} if "Course" in entry else entry for entry in config.nav]


def _chapter(text: str) -> str:
    """A chapter's Markdown as a page: its blocks in forms that MkDocs knows."""
    from groundling.course.chapter import parse

    return "\n\n".join(map(_block, parse(text).blocks))


def _block(block: Block) -> str:
    from groundling.course.measured import filled

    match block.kind:
        case "prose":
            return filled(block.text)
        case "predict":
            return '!!! question "Guess before you measure"\n\n' + indent(block.text, "    ")
        case "exercise":
            return f'```python title="Exercise: write this function"\n{block.text}\n```'
        case kind:
            return f"```{block.name if kind == 'shown' else kind}\n{block.text}\n```"
