"""The house rules that a machine can check: see CONTRIBUTING.md."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import groundling
from groundling.cli import app
from groundling.config import PRESETS, setting_fields

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "groundling"
FILES = sorted(SRC.rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS.remove(ROOT / "docs" / "LOG.md")  # quotes commands as they were
ARCHITECTURE = ROOT / "docs" / "ARCHITECTURE.md"

READING_ORDER = [
    "config", "escape", "storage", "cores", "machine", "data", "environments", "model", "parallel", "inference",
    "evaluation", "analysis", "training", "tasks", "planning", "reporting", "checkup", "acceleration", "run",
    "experiments", "interchange", "course", "web", "cli", "__main__",
]  # fmt: skip


def each_file(check: Callable[[Path], None]) -> Callable[[], None]:
    """One test that checks all files: to set up a test takes longer than such a check."""

    def all_files() -> None:
        for path in FILES:
            check(path)

    all_files.__name__, all_files.__doc__ = check.__name__, check.__doc__
    return all_files


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    """`groundling.data.corpus`, and `groundling.corpus` for its __init__.py."""
    parts = ["groundling", *path.relative_to(SRC).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, inside of functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import out: from groundling..."
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@cache
def own_imports(path: Path) -> list[tuple[int, str]]:
    """Line and module of what a file imports from groundling itself."""
    modules, found = set(map(module_name, FILES)), list[tuple[int, str]]()
    for line, name in imports(path):
        if name.split(".")[0] != "groundling":
            continue
        head, _, last = name.rpartition(".")
        if head == "groundling" and last in groundling._HOMES:
            found.append((line, groundling._HOMES[last]))  # a public name, by way of the front door
        else:
            found.append((line, name if name in modules else head))
    return found


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def functions(path: Path) -> Iterator[tuple[Function, ast.ClassDef | None]]:
    """Functions of the file and methods of its classes, each with its class; not those inside of functions."""
    for node in tree(path).body:
        if isinstance(node, Function):
            yield node, None
        elif isinstance(node, ast.ClassDef):
            yield from ((child, node) for child in node.body if isinstance(child, Function))


@each_file
def test_imports_point_upward(path: Path) -> None:
    here = part(module_name(path))
    if not here:
        return  # the front door, which imports everything when it is asked
    assert here in READING_ORDER, f"{here} has no place in READING_ORDER (and in CONTRIBUTING.md) yet."
    for line, module in own_imports(path):
        there = part(module)
        assert not there or READING_ORDER.index(there) <= READING_ORDER.index(here), (
            f"{path.name}:{line} imports {module}, which stands below {here} in the reading order."
        )


def test_the_architecture_page_shows_every_folder() -> None:
    folders = [name for name in READING_ORDER if name != "__main__"]
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)[: len(folders)] == folders
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ARCHITECTURE.parent / link).exists(), link
    for owner in re.findall(r"`([A-Z]\w+[a-z])`", text):
        assert any(re.search(rf"\bclass {owner}\b", path.read_text(encoding="utf-8")) for path in FILES), owner


def test_the_architecture_picture_shows_every_folder_and_real_classes() -> None:
    picture = ElementTree.parse(ARCHITECTURE.parent / "images" / "architecture.svg")
    boxes = [element.get("id") for element in picture.iterfind(".//{*}g[@class='room']")]
    assert sorted(boxes) == sorted(name for name in READING_ORDER if name != "__main__")
    flows = [element for element in picture.iterfind(".//{*}text[@class='flow']") if element.get("data-class")]
    for flow in flows:
        names = flow.get("data-class").split()
        assert flow.text == ", ".join(name.rpartition(".")[2] for name in names)
        for module, _, name in (name.rpartition(".") for name in names):
            assert hasattr(importlib.import_module(module), name)
    assert flows


def test_no_two_modules_import_each_other() -> None:
    graph = {module_name(path): {module for _, module in own_imports(path)} for path in FILES}
    del graph["groundling"]
    sorter = TopologicalSorter({module: there - {"groundling", module} for module, there in graph.items()})
    assert graph.keys() <= set(sorter.static_order())  # a cycle raises CycleError, which names it


@each_file
def test_modules_say_what_they_are_for(path: Path) -> None:
    assert ast.get_docstring(tree(path)), path


@each_file
def test_long_public_functions_have_docstrings(path: Path) -> None:
    if path.parent.name in ("checks", "solutions"):
        return  # the exercises of the course say what these take and return
    classes = {node.name: node for node in tree(path).body if isinstance(node, ast.ClassDef)}

    def inherited(function: Function, owner: ast.ClassDef | None) -> bool:
        """Whether a base class in the same file documents the method."""
        for base in owner.bases if owner else []:
            above = classes.get(ast.unparse(base))
            methods = [node for node in above.body if isinstance(node, Function)] if above else []
            if any(node.name == function.name and ast.get_docstring(node) for node in methods):
                return True
        return False

    for function, owner in functions(path):
        private = function.name.startswith("_") or (owner is not None and owner.name.startswith("_"))
        if not private and function.end_lineno - function.lineno + 1 > 8:
            documented = ast.get_docstring(function) or inherited(function, owner)
            assert documented, f"{path.name}:{function.lineno}: {function.name} has no docstring."


@each_file
def test_files_and_functions_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 350, f"{path.name} has {lines} lines: it probably holds two things."
    for function, _ in functions(path):
        # Without signature and docstring: commands declare their flags and help there.
        body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
        length = function.end_lineno - body[0].lineno + 1
        assert length <= 60, f"{path.name}:{function.lineno}: {function.name} has {length} lines."


def test_no_file_is_large() -> None:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    large = [str(path) for path in paths if path.is_file() and path.stat().st_size > 1_000_000]
    assert not large


# What the documents show exists.


def code_blocks(document: Path) -> Iterator[tuple[str, str]]:
    """Language and content of a document's code blocks, fenced and indented."""
    text = document.read_text(encoding="utf-8")
    yield from re.findall(r"^[ >]*```(\w*)[^\n]*\n(.*?)^[ >]*```", text, re.DOTALL | re.MULTILINE)
    yield from (("", block) for block in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE))


def commands(document: Path) -> Iterator[list[str]]:
    """The words after `groundling` of every command in a document, in code blocks and in running text."""
    text = document.read_text(encoding="utf-8")
    outside = re.sub(r"^[ >]*```.*?^[ >]*```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"`(groundling [^`]+)`", outside)
    for language, code in code_blocks(document):
        if language not in ("python", "py", "json"):
            lines += code.replace("\\\n", " ").splitlines()
    for line in lines:
        try:
            lexer = shlex.shlex(line.removeprefix("!"), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:  # a quotation that goes on in the next line, or an apostrophe in some output
            words = line.split()
        # Prompts (`$`), runners (`uvx`, `uv run`), variables (`A=b`) and pipes may come first; other words are output.
        for i, word in enumerate(words):
            before = words[i - 1] if i else "|"
            first = re.fullmatch(r"[|&;(]+|[$>%!]|uvx|run|\w+=.*", before)
            if word == "groundling" and first and i + 1 < len(words):
                stop = next((j for j in range(i, len(words)) if re.fullmatch(r"[|&;<>()]+", words[j])), len(words))
                if words[i + 1 : stop]:  # not so for `groundling <command>`
                    yield words[i + 1 : stop]


@cache
def flags(*words: str) -> set[str]:
    """Those of a command, of the one below it that the second word names (`tokenizer train`), or of all below it."""
    command = app[words[0]]
    below = [name for name in command if not name.startswith("-")]
    chosen = (
        [command[words[1]]] if len(words) > 1 and words[1] in below else [command, *map(command.__getitem__, below)]
    )
    return {
        name
        for each in chosen if each.default_command is not None
        for argument in each.assemble_argument_collection()
        for name in argument.names
    }  # fmt: skip


EVERYWHERE = {"--debug", "--help", "-h"}


def check_command(words: list[str]) -> None:
    """Check that a command and its flags exist."""
    shown = "groundling " + " ".join(words)
    if words[0].startswith("-"):
        assert words[0] in {*EVERYWHERE, "--version"}, shown
        return
    if re.fullmatch(r"[<\[{(.…].*|[A-Z]+", words[0]):
        return  # a placeholder, such as <command>
    assert words[0] in [name for name in app if not name.startswith("-")], shown
    for word in words[1:]:
        if re.match(r"--?[A-Za-z]", word):
            assert word.split("=")[0] in flags(*words[:2]) | EVERYWHERE, f"{word} in: {shown}"
    given = dict(pairwise(words)) | dict(w.split("=", 1) for w in words if "=" in w)
    preset = given.get("--preset")
    assert preset is None or preset in PRESETS or re.fullmatch(r"\W.*|[A-Z]+", preset), shown


@each_document
def test_commands_in_the_documents_exist(document: Path) -> None:
    for words in commands(document):
        check_command(words)


@each_file
def test_commands_in_the_code_exist_and_are_quoted(path: Path) -> None:
    """Commands with arguments are made by `command`, which quotes them: see escape.py and tests/test_pasted.py."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for found in re.findall(r"`groundling ([a-z-][^`]*)`", node.value):
                check_command(found.split())
        elif isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            assert not re.search(rf"groundling ({'|'.join(app)})\b[^`.]*\{{\}}", text), f"{path.name}:{node.lineno}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command":
            words = [each.value if isinstance(each, ast.Constant) else "X" for each in node.args]
            if words[0] != "X":
                check_command([str(word) for word in words])


@each_document
def test_flags_in_the_text_of_the_documents_exist(document: Path) -> None:
    known = {flag for name in app if not name.startswith("-") for flag in flags(name)} | EVERYWHERE | {"--version"}
    for benchmark in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', benchmark.read_text(encoding="utf-8")))
    for flag in re.findall(r"`(--[a-z][a-z0-9-]*)[^`]*`", document.read_text(encoding="utf-8")):
        assert flag in known, flag


@each_document
def test_links_in_the_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not re.match(r"https?:", link):
            assert (document.parent / link.partition("#")[0]).exists(), link


@each_document
def test_python_in_the_documents_uses_what_exists(document: Path) -> None:
    for language, code in code_blocks(document):
        if language not in ("python", "py") or code.lstrip().startswith(">>>"):
            continue
        for node in ast.walk(ast.parse(inspect.cleandoc("\n" + code))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "groundling":
                assert node.attr in groundling.__all__ or (SRC / f"{node.attr}.py").exists(), node.attr
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("groundling.train", "groundling.resume"):
                function = getattr(groundling, ast.unparse(node.func).split(".")[1])
                known = {*inspect.signature(function).parameters, *setting_fields()}
                for keyword in node.keywords:
                    assert keyword.arg is None or keyword.arg in known, f"{ast.unparse(node.func)}({keyword.arg}=...)"


def test_counts_in_the_readme_are_true() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"These ([\d,]+) lines", text)
    table = text[said.end() : text.index("docs/ARCHITECTURE.md", said.end())]
    lines = sum(
        len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in re.findall(r"\((src/.+?)\)", table)
    )
    assert lines == pytest.approx(int(said[1].replace(",", "")), rel=0.04)
    tests, other = re.search(
        r"^\| test functions; other Python lines \| ([\d,]+); ([\d,]+) \|", text, re.MULTILINE
    ).groups()
    n_tests = sum(
        len(re.findall(r"def test_", path.read_text(encoding="utf-8"))) for path in (ROOT / "tests").rglob("*.py")
    )
    assert n_tests == pytest.approx(int(tests.replace(",", "")), rel=0.04)
    n_lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES)
    assert n_lines == pytest.approx(int(other.replace(",", "")), rel=0.04)


# The site shows all pages.


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2].partition("\n\n")[0]
    pages = re.findall(r": (\S+\.md)$", nav, re.MULTILINE)
    docs = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(page for page in pages if not page.startswith("source/")) == sorted(docs)
    for page in pages:
        assert not page.startswith("source/") or (ROOT / page.removeprefix("source/")).exists(), page


def test_the_api_reference_has_every_public_name() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = re.findall(r"^::: groundling\.(\w+)$", pages, re.MULTILINE)
    assert sorted(shown) == sorted(set(groundling.__all__) - {"__version__"})


# Dependencies are explained.


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def explained() -> set[str]:
    """The packages that have a row in docs/dependencies.md."""
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| *`([A-Za-z0-9_.-]+)` *\|", text, re.MULTILINE))


def test_every_dependency_is_explained() -> None:
    extras = project()["optional-dependencies"]
    for requirement in [*project()["dependencies"], *extras["test"], *extras["lint"], *extras["docs"]]:
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)
        assert name and name[0] in explained(), f"{requirement} has no row in docs/dependencies.md."


def test_every_extra_that_is_named_exists() -> None:
    extras = project()["optional-dependencies"].keys() | {"{name}"}
    for path in [*FILES, *DOCUMENTS]:
        for names in re.findall(r"groundling\[([^\]]+)\]", path.read_text(encoding="utf-8")):
            assert extras >= set(names.split(",")), f"{path.name}: groundling[{names}]"


def test_every_import_is_an_explained_dependency() -> None:
    for path in FILES:
        for line, name in imports(path):
            top = name.split(".")[0]
            tops = {package.removesuffix("-py").replace("-", "_").split(".")[0] for package in explained()}
            tops |= {"groundling", "compression"}  # the second is of Python 3.14
            known = top in sys.stdlib_module_names or top in tops
            assert known, f"{path.name}:{line} imports {top}, which has no row in docs/dependencies.md."
