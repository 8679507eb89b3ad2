"""One process that trains until it ends or is killed, and tells on a pipe what it is doing."""

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
# All that a run can have: dropout, accumulation, Muon, averaged weights, a schedule with both slopes, more than one
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
"""The exit code of whoever was killed."""

_PARTS = {"write": ("before", "half", "after"), "fill": ("before", "half", "after")}

Tell = Callable[[str, object], None]


def import_all() -> None:
    """Import what takes a session its first seconds, and do nothing else."""
    import jinja2.loaders  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import numpy.random  # noqa: F401
    import pydantic.dataclasses  # noqa: F401
    import torch._dynamo  # noqa: F401  (the optimizers' need)

    import groundling.run.train  # noqa: F401


def run_session(pipe: Connection) -> None:
    """Wait for orders, do what `groundling train` does, and tell a word and a value of each thing that happens:

    - `phase`: what begins now
    - `operation`: the number of the operation on the disk that comes next
    - `batch`: its step and micro-step, and the places of its windows in the text
    - `began`, `saved`: the step from which training went on, and the newest one that is saved
    - `striking`: the part of the operation at which the process kills itself now
    - `failed`: why
    """
    conductor = parent_process()
    wait([pipe, conductor.sentinel] if conductor else [pipe])
    if not pipe.poll():
        return  # the conductor is gone
    try:
        order = json.loads(pipe.recv_bytes())
    except EOFError:
        return

    def tell(word: str, value: object) -> None:
        pipe.send_bytes(f"{word} {value}".encode())

    phases = _Phases(tell, order["strike"])
    _listen_to_batches(tell)
    storage.disk = _disk(phases, order["strike"], tell)
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
    """Tells which phase begins, as seen from events and from operations on the disk. If `strike` names one, the process
    is killed `delay` seconds after that has begun for so many `times`."""

    def __init__(self, tell: Tell, strike: dict[str, Any]) -> None:
        self._tell, self._strike, self._now = tell, strike, ""
        self._begun: Counter[str] = Counter()
        self._enter("start")

    def _enter(self, phase: str) -> None:
        if phase == self._now:
            return
        self._now = phase
        self._begun[phase] += 1
        self._tell("phase", phase)
        if (phase, self._begun[phase]) == (self._strike.get("phase"), self._strike.get("times")):
            # From a thread: it strikes in the midst of whatever PyTorch or the system is doing for the other one.
            sys.setswitchinterval(1e-5)
            threading.Timer(self._strike["delay"], _die).start()

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


def _disk(phases: _Phases, strike: dict[str, Any], tell: Tell) -> storage.Disk:
    """A disk that tells of each operation, and at the one that `strike` numbers ends the process: before it, half-way
    through what it writes, or after it."""
    count = 0

    def watched(name: str) -> Callable[..., None]:
        real = getattr(storage.Disk, name)

        def operation(self: storage.Disk, path: Path, *rest: Any) -> None:
            nonlocal count
            count += 1
            phases.operation(name, path)
            tell("operation", count)
            if count != strike.get("operation"):
                return real(self, path, *rest)
            parts = _PARTS.get(name, ("before", "after"))
            part = parts[strike["part"] % len(parts)]
            tell("striking", part)
            if part != "before":
                real(self, path, *rest)
            if part == "half":
                size = path.stat().st_size
                written = len(rest[0]) if name == "write" else size  # `fill` writes a file of its own
                os.truncate(path, size - (written + 1) // 2)
            return _die()

        return operation

    operations = [name for name in vars(storage.Disk) if not name.startswith("_")]
    watching: type[storage.Disk] = type("Watching", (storage.Disk,), {name: watched(name) for name in operations})
    return watching()
