"""torch.compile where it works and pays for itself: tried on the model itself, and remembered for this machine."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from groundling import storage
from groundling.machine import Machine, has_compiler, processor, versions
from groundling.model.gpt import GPT
from groundling.training.objective import Objective

_COLD = 30.0  # seconds that compiling is expected to take where it was never tried
_GAIN = 0.25  # share of the time that it is expected to save there
_PATIENCE = 2.0  # seconds: a pass that takes longer is timed once
_LAUNCH_BOUND = 5e7  # parameters: with fewer, a GPU is done with a kernel before the next is launched
_WORTH = 0.03  # the share that it must save to be used: less is within the noise


@dataclass(frozen=True)
class Trial:
    """What came of compiling: seconds a forward and backward pass take either way, and what compiling took."""

    plain: float
    compiled: float | None  # None: it failed
    seconds: float
    error: str = ""

    @property
    def gain(self) -> float:
        """The share of the time that is saved."""
        return 1 - self.compiled / self.plain if self.compiled else 0.0


def choose_forward(
    model: GPT,
    objective: Objective,
    batch: Any,
    machine: Machine,
    passes: float,
    graphs: bool = True,
) -> tuple[Callable[..., torch.Tensor], bool, str]:
    """The model, compiled or not, for about `passes` passes forward and back over batches like `batch`; with CUDA
    `graphs` if each pass is a step.

    Returns what to call in the model's place, whether it is compiled, and a sentence that says why.
    """
    if machine.compile == "off":
        return model, False, ""
    memory = _memory(model, batch, machine)
    if machine.compile == "auto":
        if machine.device.type == "mps":
            return model, False, "not compiled, since PyTorch's compiler for Apple GPUs is not ready"
        plain = _seconds(model, model, objective, batch, machine, times=1)
        known = _recall(memory)
        if known is not None and known.error:
            return model, False, f"not compiled, since that failed here before ({known.error})"
        # What was compiled once is taken from the disk the next time, in about a fifth of the time.
        cost, gain = (_COLD, _GAIN) if known is None else (known.seconds / 5, known.gain)
        if known is not None and gain < _WORTH:
            return model, False, "not compiled, since that was no faster here before"
        if gain * plain * passes < 1.5 * cost:
            return model, False, f"not compiled, since that would not pay for itself in {_rounded(plain * passes)}"
        if not has_compiler():
            return model, False, "not compiled, since no compiler is here"
    compiled = compiled_forward(model, machine, graphs)
    trial = _try(model, compiled, objective, batch, machine)
    _remember(memory, trial)
    if trial.error:
        return model, False, f"torch.compile does not work here ({trial.error})"
    if machine.compile == "auto" and trial.gain < _WORTH:
        return model, False, "not compiled, since that is no faster here"
    return compiled, True, f"compiled in {trial.seconds:.0f} s, which saves {max(trial.gain, 0):.0%} of a step"


def compiled_forward(model: GPT, machine: Machine, graphs: bool) -> Callable[..., torch.Tensor]:
    """The model, to be compiled when it first runs; on a GPU with CUDA `graphs`, if it is a small one."""
    if machine.device.type != "cuda":
        return functools.partial(model, through=Compiled())
    # A GPU is worth the minute that a whole model takes to compile, and a small one waits for Python between its
    # kernels: recorded as CUDA graphs, a pass is one launch. (Their memory is used anew in each pass, so gradients
    # that are to be added up over several would be lost, and so would a teacher's logits.)
    small = sum(p.numel() for p in model.parameters()) < _LAUNCH_BOUND
    mode = "reduce-overhead" if small and graphs else "default"
    return torch.compile(model, dynamic=False, mode=mode)


class Compiled:
    """What `GPT.forward` takes as `through`: compiles each part when it first comes.

    Parts of a kind share one compiled function: six blocks take a sixth of the time to compile, and run no slower.
    """

    def __init__(self) -> None:
        self.parts: dict[Callable[..., torch.Tensor], Callable[..., torch.Tensor]] = {}

    def __call__(self, part: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        if part not in self.parts:
            self.parts[part] = torch.compile(part, dynamic=False)
        return self.parts[part](*arguments)


def _try(
    model: GPT, compiled: Callable[..., torch.Tensor], objective: Objective, batch: Any, machine: Machine
) -> Trial:
    # The compiled code is kept with the rest of the cache, not in a temporary folder that a restart empties.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(storage.cache_folder() / "compiled"))
    plain = _seconds(model, model, objective, batch, machine)
    start = time.perf_counter()
    try:
        _seconds(model, compiled, objective, batch, machine, times=1)
        seconds = time.perf_counter() - start
        return Trial(plain, _seconds(model, compiled, objective, batch, machine), seconds)
    except Exception as error:  # it fails in many ways, and none of them may stop a run
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        return Trial(plain, None, time.perf_counter() - start, reason[:120])


def _seconds(
    model: GPT,
    forward: Callable[..., torch.Tensor],
    objective: Objective,
    batch: Any,
    machine: Machine,
    times: int = 3,
) -> float:
    """The fastest of some passes forward and back; the model and PyTorch's random numbers are left as they were."""
    fastest, end = float("inf"), time.perf_counter() + _PATIENCE
    with machine.own_randomness():
        model.train()
        for _ in range(times):
            start = time.perf_counter()
            with machine.autocast():
                loss = objective(forward, batch)
            loss.backward()
            float(loss.detach())  # waits for a GPU
            fastest = min(fastest, time.perf_counter() - start)
            model.zero_grad(set_to_none=True)
            if time.perf_counter() > end:
                break
    return fastest


def _memory(model: GPT, batch: Any, machine: Machine) -> Path:
    """Where the trial of such a model with such batches on this machine is remembered."""
    where = [versions(), processor(), str(machine.device), str(machine.dtype), machine.threads]
    what = [asdict(model.config), model.vocab_size, [list(part.shape) for part in batch]]
    key = hashlib.sha256(json.dumps([where, what], sort_keys=True).encode()).hexdigest()[:16]
    return storage.cache_folder() / "compiler" / f"{key}.json"


def _recall(path: Path) -> Trial | None:
    try:
        return Trial(**storage.read_json(path))
    except (OSError, ValueError, TypeError):
        return None  # never tried, or no longer readable: it is tried again


def _remember(path: Path, trial: Trial) -> None:
    try:
        storage.make_folder(path.parent)
        storage.write_json(path, asdict(trial))
    except OSError:
        pass  # a cache that cannot be written costs the next run some seconds, and nothing else


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
