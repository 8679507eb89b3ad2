"""A process that trains until it finishes or is killed, and reports through a pipe what it is doing."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
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

_PARTS = {"write": ("before", "half", "after"), "fill": ("before", "half", "after")}

Tell = Callable[[str, object], None]


def import_all() -> None:
    """Import the slow modules, so that forked sessions start quickly."""
    import jinja2.loaders  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import numpy.random  # noqa: F401
    import pydantic.dataclasses  # noqa: F401
    import torch._dynamo  # noqa: F401  (needed by the optimizers)

    import groundling.run.train  # noqa: F401


def run_session(pipe: Connection) -> None:
    """Wait for an order, train like `groundling train`, and send a line for each thing that happens:

    - `phase`: the phase that begins
    - `operation`: the number of the next disk operation
    - `batch`: a step, and the offsets of its windows in the text
    - `began`, `saved`: the step from which training continued, and the newest saved step
    - `killing`: the process is about to kill itself before, half-way through or after a disk operation
    - `failed`: the reason
    """
    supervisor = parent_process()
    wait([pipe, supervisor.sentinel] if supervisor else [pipe])
    if not pipe.poll():
        return  # the supervisor is gone
    try:
        order = json.loads(pipe.recv_bytes())
    except EOFError:
        return

    def tell(word: str, value: object) -> None:
        pipe.send_bytes(f"{word} {value}".encode())

    phases = _Phases(tell, order["kill"])
    _listen_to_batches(tell)
    storage.disk = _disk(phases, order["kill"], tell)
    folder = Path(order["folder"])
    try:
        from groundling.run.train import train

        train(
            folder / "words.txt", name=order["name"], out=folder / "runs", on_event=phases.follow, **order["settings"]
        )
    except Exception as error:
        tell("failed", f"{type(error).__name__}: {error}")


def _die() -> None:
    os.kill(os.getpid(), _KILL)


class _Phases:
    """Reports the phases, as seen from events and disk operations. If `kill` names a phase, kills the process `delay`
    seconds after that phase has begun for the `times`-th time."""

    def __init__(self, tell: Tell, kill: dict[str, Any]) -> None:
        self._tell, self._kill, self._now = tell, kill, ""
        self._begun: Counter[str] = Counter()
        self._enter("start")

    def _enter(self, phase: str) -> None:
        if phase == self._now:
            return
        self._now = phase
        self._begun[phase] += 1
        self._tell("phase", phase)
        if (phase, self._begun[phase]) == (self._kill.get("phase"), self._kill.get("times")):
            # From a thread, so that it hits whatever PyTorch or the system is doing in the main thread.
            sys.setswitchinterval(1e-5)
            threading.Timer(self._kill["delay"], _die).start()

    def follow(self, event: object) -> None:
        from groundling.training.events import Sample, Saved, Started, Step

        match event:
            case Started():
                self._tell("began", event.step)
                self._enter("steps" if event.step else "evaluation")
            case Step():
                self._enter("steps" if event.step % EVAL_EVERY else "evaluation")
            case Sample():
                self._enter("steps")
            case Saved():
                self._tell("saved", event.step)
                self._enter("steps" if event.step < STEPS else "end")

    def operation(self, name: str, path: Path) -> None:
        if "checkpoints" in path.parts and self._now != "start":
            removes = name == "delete" or (name == "rename" and path.name.startswith("step-"))
            self._enter("pruning" if removes else "saving")


def _listen_to_batches(tell: Tell) -> None:
    from groundling.data.batches import WindowSampler

    offsets = WindowSampler.offsets

    def told(self: WindowSampler, step: int) -> npt.NDArray[Any]:
        places = offsets(self, step)
        tell("batch", f"{step} {places.tolist()}")
        return places

    WindowSampler.offsets = told  # type: ignore[method-assign]


def _disk(phases: _Phases, kill: dict[str, Any], tell: Tell) -> storage.Disk:
    """A disk that reports each operation, and kills the process at the one numbered in `kill`: before it, half-way
    through its writing, or after it."""
    count = 0

    def watched(name: str) -> Callable[..., None]:
        real = getattr(storage.Disk, name)

        def operation(self: storage.Disk, path: Path, *rest: Any) -> None:
            nonlocal count
            count += 1
            phases.operation(name, path)
            tell("operation", count)
            if count != kill.get("operation"):
                return real(self, path, *rest)
            parts = _PARTS.get(name, ("before", "after"))
            part = parts[kill["part"] % len(parts)]
            tell("killing", part)
            if part != "before":
                real(self, path, *rest)
            if part == "half":
                size = path.stat().st_size
                written = len(rest[0]) if name == "write" else size  # `fill` always writes a new file
                os.truncate(path, size - (written + 1) // 2)
            return _die()

        return operation

    operations = [name for name in vars(storage.Disk) if not name.startswith("_")]
    watching: type[storage.Disk] = type("Watching", (storage.Disk,), {name: watched(name) for name in operations})
    return watching()
