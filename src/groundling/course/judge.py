"""Checks a learner's file, in a process of its own: `python -m groundling.course.judge FILE NAME...`.

Of the file, only imports, functions, classes and constants are executed, not the listings, so a check takes seconds.
For each exercise one line of JSON: {"exercise": name, "wrong": sentence or null}.
"""

from __future__ import annotations

import ast
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.course.checks import Wrong, check_of, expect_written
from groundling.storage import safe_read

_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def definitions(source: str, file: str) -> dict[str, Any]:
    """The names that a file defines, without running its listings. Raises what the file raises."""
    tree = ast.parse(source, file)
    tree.body = [node for node in tree.body if isinstance(node, _DEFINITIONS) or _is_constant(node)]
    names: dict[str, Any] = {"__name__": "answers"}
    exec(compile(tree, file, "exec"), names)
    return names


def _is_constant(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return True


def source_of(path: Path) -> str:
    """The Python code of a program, or of a notebook without the commands in it, such as `%pip`.

    Raises `ValueError` if the file is not one of these.
    """
    if path.suffix != ".ipynb":
        return safe_read.read_bytes(path, safe_read.LARGEST_JSON).decode("utf-8")
    content = storage.read_json(path)
    try:
        cells = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    except (KeyError, TypeError):
        raise ValueError(f"{path} is not a notebook.") from None
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith(("%", "!")))


def judge(source: str, file: str, name: str) -> str | None:
    """What is wrong with the exercise `name` in a file, in a sentence; None if it is right."""
    try:
        expect_written(source, name)
        names = definitions(source, file)
        if name not in names:
            return f"The file has no function {name}."
        check_of(name)(names[name])
    except Wrong as wrong:
        return str(wrong)
    except SyntaxError as error:
        return f"Python cannot read line {error.lineno}: {error.msg}."
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f" in line {lines[-1]}" if lines else ""
        return f"It failed{where} with {type(error).__name__}: {error}."
    return None


def main() -> None:
    file, *names = sys.argv[1:]
    try:
        source, unreadable = source_of(Path(file)), None
    except ValueError as error:
        source, unreadable = "", str(error)
    for name in names:
        print(json.dumps({"exercise": name, "wrong": unreadable or judge(source, file, name)}), flush=True)


if __name__ == "__main__":
    main()
