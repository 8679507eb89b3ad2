"""Compare two runs bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from groundling import storage

_TIMES = ("elapsed", "stage_elapsed", "seconds_left", "tokens_per_second")


def first_difference(run: Path, whole: Path) -> str | None:
    """The first difference between two runs' folders, as a sentence: in the last checkpoint's tensors and state, in the
    logged losses, or in the samples. Times are ignored. None if all bits are equal."""
    ours, theirs = tensors(run), tensors(whole)
    if ours.keys() != theirs.keys():
        return f"The last checkpoints have different tensors: {', '.join(sorted(ours.keys() ^ theirs.keys())[:3])}."
    for name, tensor in theirs.items():
        if (ours[name].dtype, ours[name].shape) != (tensor.dtype, tensor.shape):
            return f"The last checkpoint's {name} has another shape or type."
        if ours[name].tobytes() != tensor.tobytes():
            n = int((ours[name] != tensor).sum())
            return f"The last checkpoint's {name} differs in {n:,} of {tensor.size:,} values."
    mine, others = history(run), history(whole)
    for line, other in zip(mine, others, strict=False):
        if line != other:
            return f"The log differs: {line}, and without interruption {other}."
    if len(mine) != len(others):
        return f"{len(mine)} losses were logged, and without interruption {len(others)}."
    if (run / "samples.jsonl").read_bytes() != (whole / "samples.jsonl").read_bytes():
        return "The samples differ."
    return None


def tensors(run: Path) -> dict[str, npt.NDArray[Any]]:
    """All tensors of the last checkpoint, and the values of its training state, by name."""
    last = run / "checkpoints" / storage.read_json(run / "checkpoints" / "last.json")["checkpoint"]
    state = {key: np.array(value) for key, value in storage.read_json(last / "state.json").items()}
    return load_file(last / "model.safetensors") | load_file(last / "optimizer.safetensors") | _timeless(state)


def history(run: Path) -> list[dict[str, Any]]:
    """The logged steps and evaluations."""
    lines = storage.read_json_lines(run / "metrics.jsonl")
    return [_timeless(line) for line in lines if line["event"] in ("step", "evaluation")]


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _TIMES}
