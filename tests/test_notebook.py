"""The Colab notebook runs from top to bottom: here on a tiny model, without network, Colab or GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "groundling_colab.ipynb"

SETTINGS = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 2, "eval_every": 1,
    "eval_tokens": 512, "sample_tokens": 20, "device": "cpu", "dtype": "float32",
}  # fmt: skip


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def printed(cell: Any) -> str:
    """What a cell showed as text: prints, and what rich displays."""
    streams = [o.text for o in cell.outputs if o.output_type == "stream"]
    return "".join(streams + [o.data.get("text/plain", "") for o in cell.outputs if "data" in o])


def images(cell: Any) -> list[str]:
    return [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]


def test_it_is_clean() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
    present = [tag for cell in notebook.cells for tag in tags(cell)]
    assert sorted(present) == ["colab", "install", "parameters"]


def test_it_runs_from_top_to_bottom(kernel: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 40, encoding="utf-8")
    notebook = read()
    notebook.cells = [cell for cell in notebook.cells if not {"install", "colab"} & set(tags(cell))]
    parameters = next(cell for cell in notebook.cells if "parameters" in tags(cell))
    parameters.source += (
        f"\ncorpus, preset, steps, my_text = 'python-docs', 'nano', 3, 'mine.txt'\nsettings = {SETTINGS!r}"
    )
    NotebookClient(
        notebook, timeout=120, kernel_name=kernel, resources={"metadata": {"path": str(work)}}
    ).execute()  # a cell that fails raises CellExecutionError, with its traceback

    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert "device" in printed(cells["doctor"])
    assert "parameters" in printed(cells["train"]) and "validation loss" in printed(cells["train"])
    assert len(images(cells["plot"])) == 1
    assert [f"after {n} steps" in printed(cells["samples"]) for n in (0, 1, 3)] == [True, True, True]
    written = printed(cells["generate"])
    assert written.count("ROMEO:") == 3 and len(written) > 100  # the mark that ends a document may be drawn early
    for figure in ("loss", "perplexity", "bits per character"):
        assert figure in printed(cells["evaluate"])
    assert len(printed(cells["own"]).strip()) > 200
    assert len(images(cells["resume"])) == 1 and images(cells["resume"]) != images(cells["plot"])
    runs = work / "runs"
    assert {folder.name for folder in runs.iterdir()} == {"first", "first-mine"}
    assert (
        json.loads((runs / "first" / "config.json").read_text(encoding="utf-8"))["settings"]["training"]["steps"] == 6
    )
