"""The runs folder: load a run by name, or list a summary of each."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

from groundling.config import did_you_mean, slip
from groundling.escape import command
from groundling.run.folder import is_name, runs_folder
from groundling.run.metrics_log import read_line
from groundling.run.run import Run
from groundling.training.events import VALIDATION_LOSS
from groundling.training.state import read_state

_SUFFIXES = {".json", ".jsonl", ".safetensors", ".png", ".html"}  # of the files in a run
_END = 2**18  # bytes of a history, in which its last evaluation is


def load(run: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None) -> Run:
    """Load a run by its name in the runs folder, or by the path of the run, one of its checkpoints, or a file of them.

    Raises FileNotFoundError if there is no such run, and ValueError if the path is another kind of model.
    """
    if not isinstance(run, str | os.PathLike):
        raise TypeError(f"A run is its name or a path, not {type(run).__name__}.")
    reference = os.fspath(run)
    folder = runs_folder(out)
    for path in [*_called(reference, folder), _whole(Path(os.path.expanduser(reference)))]:
        if path.is_dir() and any(path.glob("model*.safetensors")):
            if not (path / "state.json").is_file():
                raise ValueError(
                    f"{path} is not a groundling checkpoint. If it is a Hugging Face model, use "
                    f"`{command('import', path)}`."
                )
            return Run(path.resolve().parent.parent, path.resolve())
        if (path / "config.json").is_file() or (path / "checkpoints").is_dir():  # config.json can be restored
            return Run(_absolute(path))
    known = [path.name for path in _run_folders(folder)]
    hint = did_you_mean(reference, known) or (f"; there are {', '.join(known[-5:])}" if known else "")
    explanation = slip(reference)
    raise FileNotFoundError(
        f"No run {reference!r} in {folder}, and no run at that path"
        + (f": {explanation}" if explanation else f"{hint}.")
    )


def _whole(path: Path) -> Path:
    """The run or checkpoint that `path` is in, if it is one of their files, or the folder of checkpoints."""
    whole = path.absolute()
    while whole.name == "checkpoints" or (whole.suffix in _SUFFIXES and whole.is_file()):
        whole = whole.parent
    return path if whole == path.absolute() else whole


def _absolute(path: Path) -> Path:
    """The absolute path, without links but for a last one: its name is what the user calls the run."""
    return path.parent.resolve() / path.name if path.is_symlink() else path.resolve()


def runs(out: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """A summary of every run in the runs folder, oldest first, ready for JSON."""
    return sorted(map(summary, _run_folders(runs_folder(out))), key=lambda row: row["created"] or "")


def _called(name: str, folder: Path) -> list[Path]:
    """The folders of that name in `folder`, in whatever Unicode form a file system or keyboard writes it; first the
    one that is exactly the same."""
    if not folder.is_dir():
        return []
    wanted = unicodedata.normalize("NFC", name)
    found = [path for path in folder.iterdir() if unicodedata.normalize("NFC", path.name) == wanted]
    if is_name(name):
        found.append(folder / name)  # in another case, where the file system does not distinguish them
    return sorted(found, key=lambda path: path.name != name)


def _run_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/config.json"))


def summary(folder: Path) -> dict[str, Any]:
    """One row of `runs`."""
    row: dict[str, Any] = {
        "name": folder.name, "status": "unreadable", "step": 0, "steps": None, "best_step": None,
        "best_validation_loss": None, "metric": None, "minutes": None, "corpus": None, "preset": None, "created": None,
        "task": None, "lineage": [], "others": {}, "folder": str(folder),
    }  # fmt: skip
    try:
        run = Run(_absolute(folder))
        row |= {
            "corpus": run.record.corpus.name,
            "preset": run.config.preset,
            "steps": run.config.training.steps,
            "minutes": run.config.training.minutes,
            "created": run.record.created,
            "task": run.config.task,
            "lineage": [ancestor.model_dump() for ancestor in run.record.lineage],
            "others": {role: other.model_dump() for role, other in run.record.others.items()},
            "status": "imported" if run.record.imported else "new",
        }
        steps = run.checkpoints.steps()
        if row["status"] == "imported":
            row["steps"] = 0
        elif steps:
            state = read_state(run.checkpoints.path(steps[-1]))
            row |= {
                "step": state.step,
                "best_step": (run.result or {}).get("best_step", state.best_step if state.best_score else None),
                "best_validation_loss": (run.result or {}).get("best_validation_loss", state.best_score),
                "status": "finished" if run.finished else "unfinished",
                "metric": VALIDATION_LOSS if run.config.task == "pretraining" else _metric(folder / "metrics.jsonl"),
            }
    except (ValueError, OSError, KeyError):
        row["status"] = "unreadable"  # one damaged run must not hide the others
    return row


def _metric(history: Path) -> str:
    """What the last evaluation measured. Reads the end of the file only, since there may be many runs."""
    if not history.exists():
        return VALIDATION_LOSS
    with history.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
        lines = file.read().splitlines()
    last = next((line for line in reversed(lines) if b'"event": "evaluation"' in line), b"")
    return str(read_line(last, str(history)).get("metric", VALIDATION_LOSS)) if last else VALIDATION_LOSS
