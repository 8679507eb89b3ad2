"""Whether a machine is ready for the course: room, memory, one training step, and how long each chapter computes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from groundling import storage
from groundling.course.chapter import chapters
from groundling.course.measured import minutes
from groundling.machine import matmul_gflops
from groundling.run.train import train

DISK = 2e9  # bytes for the runs of all chapters
MEMORY = 2e9


@dataclass(frozen=True)
class Preflight:
    minutes: dict[int, float | None]
    loss: float  # after one step
    problems: tuple[str, ...]


def preflight(folder: Path = Path()) -> Preflight:
    """Check the disk of `folder`, the memory and a training step. Problems are sentences that say what to do."""
    problems = []
    if (free := storage.free_bytes(folder.absolute())) < DISK:
        problems.append(
            f"The disk has {free / 1e9:.1f} GB free. The course needs {DISK / 1e9:.0f} GB: delete some files."
        )
    if (free := psutil.virtual_memory().available) < MEMORY:
        problems.append(
            f"{free / 1e9:.1f} GB of memory are free. The course needs {MEMORY / 1e9:.0f} GB: close programs."
        )
    gflops = matmul_gflops("float32")
    with tempfile.TemporaryDirectory() as temporary:
        run = train("python-docs", preset="nano", steps=1, out=temporary, compile="off", on_event=lambda _: None)
        loss = float(run.evaluate()["loss"])
    return Preflight({number: minutes(number, gflops) for number in chapters()}, loss, tuple(problems))
