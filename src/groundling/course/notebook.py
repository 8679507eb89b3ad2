"""A chapter as a Jupyter notebook, for Colab, VS Code and Jupyter.

The format is JSON of a dozen keys (https://nbformat.readthedocs.io), so that the library for it, with its schemas and
six dependencies, is used by the tests only.
"""

from __future__ import annotations

import json
from typing import Any

from groundling.course.chapter import Chapter
from groundling.course.program import Cell, cells


def notebook(chapter: Chapter, shakespeare: bool = True) -> str:
    """The chapter at class scale, one cell per block; without `shakespeare`, for another text."""
    install = Cell("code", "%pip install -q groundling")
    title, *others = cells(chapter, shakespeare=shakespeare)
    found = [_cell(f"cell-{k}", cell) for k, cell in enumerate((title, install, *others))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cell(name: str, cell: Cell) -> dict[str, Any]:
    made = {"cell_type": cell.kind, "id": name, "metadata": {}, "source": cell.text.splitlines(keepends=True)}
    return made if cell.kind == "markdown" else {**made, "execution_count": None, "outputs": []}
