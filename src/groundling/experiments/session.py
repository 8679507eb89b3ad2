"""A process that trains until it finishes or is killed, and reports through a pipe what it is doing."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from groundling import storage

STEPS, EVAL_EVERY = 36, 6
# Everything a run can have: dropout, accumulation, Muon, averaged weights, a schedule with both slopes, more than one
# pass, and two generations.
SETTINGS: Final[dict[str, Any]] = {
    "steps": STEPS, "eval_every": EVAL_EVERY, "checkpoint_every": 4, "keep_checkpoints": 2, "warmup_steps": 5,
    "n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32, "norm": "rmsnorm", "position": "rope", "mlp": "swiglu",
    "batch_size": 4, "accumulate": 2, "dropout": 0.1, "optimizer": "muon", "weight_average": 0.1,
    "generations": 2,
    "eval_tokens": 512, "sample_tokens": 8, "device": "cpu", "compile": "off",
}  # fmt: skip
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # the latter is TerminateProcess on Windows
KILLED: Final = -_KILL if os.name == "posix" else int(_KILL)
"""The exit code of a killed process."""


def import_all() -> None:
    """Import the slow modules, so that forked sessions start quickly."""
    import jinja2.loaders  # noqa: F401
    import numpy.random  # noqa: F401
    import pydantic.dataclasses  # noqa: F401
    import torch._dynamo  # noqa: F401  (needed by the optimizers)

    import groundling.run.train  # noqa: F401
    from groundling.reporting.plot import default_style

    with default_style():
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401


def run_session(pipe: Connection, folder: Path, name: str, settings: dict[str, Any], kill: dict[str, Any]) -> None:
    """Train like `groundling train`, and send `[what, value]` as JSON for each thing that happens:

    - `phase`: the phase that begins
    - `operations`: the number of the next disk operation
    - `batch`: a step, and the offsets of its windows in the text
    - `began`, `saved`: the step from which training continued, and the newest saved step
    - `killing`: the process is about to kill itself before, half-way through or after a disk operation
    - `failed`: the reason
    """
    observer = _Observer(pipe, kill)
    observer.watch_disk()
    observer.watch_batches()
    from groundling.run.train import train

    try:
        train(folder / "words.txt", name=name, out=folder / "runs", on_event=observer.on_event, **settings)
    except Exception as error:
        observer.report("failed", f"{type(error).__name__}: {error}")


class _Observer:
    """Follows training through its events, batches and disk operations, and reports them through `pipe`.

    `kill` says when to kill the process: `delay` seconds after `phase` has begun for the `times`-th time, or at the
    disk operation number `operation`, where `part` picks before it, half-way through its writing, or after it.
    """

    def __init__(self, pipe: Connection, kill: dict[str, Any]) -> None:
        self._pipe, self._kill = pipe, kill
        self._phase, self._times, self._operations = "", Counter[str](), 0
        self._enter("start")

    def report(self, what: str, value: Any) -> None:
        self._pipe.send_bytes(json.dumps([what, value]).encode())

    def _enter(self, phase: str) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        self._times[phase] += 1
        self.report("phase", phase)
        if (phase, self._times[phase]) == (self._kill.get("phase"), self._kill.get("times")):
            # From a thread, so that it hits whatever PyTorch or the system is doing in the main thread.
            sys.setswitchinterval(1e-5)
            threading.Timer(self._kill["delay"], _die).start()

    def on_event(self, event: object) -> None:
        from groundling.training.events import Sample, Saved, Started, Step

        match event:
            case Started():
                self.report("began", event.step)
                self._enter("steps" if event.step else "evaluation")
            case Step():
                self._enter("steps" if event.step % EVAL_EVERY else "evaluation")
            case Sample():
                self._enter("steps")
            case Saved():
                self.report("saved", event.step)
                self._enter("steps" if event.step < STEPS else "end")

    def watch_batches(self) -> None:
        from groundling.data.batches import WindowSampler

        offsets = WindowSampler.offsets

        def reported(sampler: WindowSampler, step: int) -> npt.NDArray[Any]:
            windows = offsets(sampler, step)
            self.report("batch", [step, windows.tolist()])
            return windows

        WindowSampler.offsets = reported  # type: ignore[method-assign,assignment]

    def watch_disk(self) -> None:
        for name in [name for name in vars(storage.Disk) if not name.startswith("_")]:
            setattr(storage.disk, name, partial(self._on_disk, name, getattr(storage.disk, name)))

    def _on_disk(self, name: str, operation: Callable[..., None], path: Path, *rest: Any) -> None:
        if "checkpoints" in path.parts and self._phase != "start":
            removes = name == "delete" or (name == "rename" and path.name.startswith("step-"))
            self._enter("pruning" if removes else "saving")
        self._operations += 1
        self.report("operations", self._operations)
        if self._operations != self._kill.get("operation"):
            return operation(path, *rest)
        parts = ("before", "half", "after") if name in ("write", "fill") else ("before", "after")
        part = parts[self._kill["part"] % len(parts)]
        self.report("killing", part)
        size = path.stat().st_size if path.exists() else 0
        if part != "before":
            operation(path, *rest)
        if part == "half":
            os.truncate(path, (size + path.stat().st_size) // 2)
        return _die()


def _die() -> None:
    os.kill(os.getpid(), _KILL)
