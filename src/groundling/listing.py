"""All runs of a folder, a row each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from groundling.run import Run, run_folders, runs_folder
from groundling.training.checkpoint import read_state


def runs(out: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """A summary of every run in the runs folder, oldest first, ready for JSON."""
    return sorted(map(_summary, run_folders(runs_folder(out))), key=lambda row: row["created"] or "")


def _summary(folder: Path) -> dict[str, Any]:
    run = Run(folder.resolve())
    row: dict[str, Any] = {
        "name": run.name, "status": "unreadable", "step": 0, "steps": None, "best_step": None,
        "best_validation_loss": None, "corpus": None, "preset": None, "created": None, "folder": str(folder),
    }  # fmt: skip
    try:
        row |= {
            "corpus": run.record["corpus"]["name"],
            "preset": run.config.preset,
            "steps": run.config.training.steps,
            "created": run.record.get("created"),
            "status": "new",
        }
        steps = run.checkpoints.steps()
        if steps:
            state = read_state(run.checkpoints.path(steps[-1]))
            row |= {
                "step": state.step,
                "best_step": (run.result or {}).get("best_step", state.best_step if state.best_loss else None),
                "best_validation_loss": (run.result or {}).get("best_validation_loss", state.best_loss),
                "status": "finished" if run.finished else "unfinished",
            }
    except (ValueError, OSError, KeyError):
        row["status"] = "unreadable"  # a damaged run must not hide the others
    return row
