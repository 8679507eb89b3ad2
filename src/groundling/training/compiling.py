"""Decide whether torch.compile pays off, by a trial on the model. The result is remembered for this machine."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from groundling import storage
from groundling.config import TrainingSettings
from groundling.data.batches import Batch
from groundling.machine import Machine, bits, compiler_path, has_compiler, versions
from groundling.model.compiled import Forward, compiled_forward
from groundling.model.gpt import GPT
from groundling.training.learner import Learner
from groundling.training.out_of_memory import is_out_of_memory
from groundling.training.task import Task

_COLD = 30.0  # expected seconds of compiling before any trial
_GAIN = 0.25  # expected share of the time that it saves
_PATIENCE = 2.0  # seconds; a pass that takes longer is timed only once
_WORTH = 0.03  # the share of the time that it must save; less is noise


@dataclass(frozen=True)
class Timing:
    """A trial: seconds per forward and backward pass without and with compiling, and of compiling itself."""

    plain: float
    compiled: float | None  # None: it failed
    seconds: float
    error: str = ""

    @property
    def gain(self) -> float:
        """The share of the time that compiling saves."""
        return 1 - self.compiled / self.plain if self.compiled else 0.0


class Choice(NamedTuple):
    """The forward function to use, whether it is compiled, and the reason as a sentence."""

    forward: Forward
    compiled: bool
    reason: str


class CompileTrial:
    """Decides whether to compile a model for a task, on batches like `batch`."""

    def __init__(self, model: GPT, task: Task, batch: Batch, machine: Machine) -> None:
        self.model, self.task, self.batch, self.machine = model, task, batch, machine

    def choose(self, passes: float, graphs: bool = True) -> Choice:
        """The choice for about `passes` forward and backward passes, with CUDA `graphs` if each pass is a step."""
        model, machine = self.model, self.machine
        if machine.compile == "off":
            return Choice(model, False, "")
        if machine.compile == "auto":
            if machine.device.type == "mps":
                return Choice(model, False, "not compiled: PyTorch's compiler for Apple GPUs is not ready")
            plain, known = self._seconds(model, times=1), self._recall()
            if known is not None and known.error:
                return Choice(model, False, f"not compiled: it failed here before ({known.error})")
            # The second time, compiled code is loaded from disk, in about a fifth of the time.
            cost, gain = (_COLD, _GAIN) if known is None else (known.seconds / 5, known.gain)
            if known is not None and gain < _WORTH:
                return Choice(model, False, "not compiled: it was no faster here before")
            if gain * plain * passes < 1.5 * cost:
                return Choice(model, False, f"not compiled: it would not pay for itself in {_rounded(plain * passes)}")
            if not has_compiler():
                return Choice(model, False, "not compiled: no C++ compiler found")
        compiled = compiled_forward(model, machine, graphs)
        timing = self._try(compiled)
        if timing.error:
            return Choice(model, False, f"torch.compile does not work here ({timing.error})")
        if machine.compile == "auto" and timing.gain < _WORTH:
            return Choice(model, False, "not compiled: it is no faster here")
        return Choice(compiled, True, f"compiled in {timing.seconds:.0f} s, saves {max(timing.gain, 0):.0%} of a step")

    def _try(self, compiled: Forward) -> Timing:
        """Compile, time it, and remember the result."""
        # Keep compiled code in our cache, not in a temporary folder that a restart empties.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(storage.cache_folder() / "compiled"))
        plain = self._seconds(self.model)
        start = time.perf_counter()
        try:
            self._seconds(compiled, times=1)
            seconds = time.perf_counter() - start
            timing = Timing(plain, self._seconds(compiled), seconds)
        except Exception as error:  # it can fail in many ways, and none may stop a run
            if is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
            timing = Timing(plain, None, time.perf_counter() - start, reason[:120])
            if isinstance(error, OSError):  # such as a full disk: it may work the next time
                return timing
        self._remember(timing)
        return timing

    def _seconds(self, forward: Forward, times: int = 3) -> float:
        """Seconds of the fastest of several forward and backward passes. The model and PyTorch's random state do not
        change."""
        fastest, end = float("inf"), time.perf_counter() + _PATIENCE
        with self.machine.own_randomness():
            self.model.train()
            for _ in range(times):
                start = time.perf_counter()
                with self.machine.autocast():
                    loss = self.task.loss(forward, self.batch).value
                loss.backward()
                float(loss.detach())  # waits for a GPU
                fastest = min(fastest, time.perf_counter() - start)
                self.model.zero_grad(set_to_none=True)
                if time.perf_counter() > end:
                    break
        return fastest

    @property
    def _cache_file(self) -> Path:
        """The file for the trial of this model with these batches on this machine."""
        machine, model, compiler = self.machine, self.model, compiler_path()
        where = [versions(), bits(machine)["processor"], str(machine.device), str(machine.dtype), machine.threads]
        stamp = os.stat(compiler).st_mtime_ns if compiler else 0
        what = [
            asdict(model.config), model.vocab_size, list(self.batch.tokens.shape), [compiler, stamp],
            model.blocks[0].recompute,
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps([where, what], sort_keys=True).encode()).hexdigest()[:16]
        return storage.cache_folder() / "compiler" / f"{key}.json"

    def _recall(self) -> Timing | None:
        try:
            return Timing(**storage.read_json(self._cache_file))
        except (OSError, ValueError, TypeError):
            return None  # never tried, or unreadable: try again

    def _remember(self, timing: Timing) -> None:
        with suppress(OSError):  # a cache that cannot be written only costs the next run some seconds
            storage.make_folder(self._cache_file.parent)
            storage.write_json(self._cache_file, asdict(timing))


def choose_forward(learner: Learner, settings: TrainingSettings, machine: Machine, step: int) -> Choice:
    """The choice for the rest of a run after `step` steps. Adapters are never compiled. Several processes make no
    trial, whose result could differ: they compile on GPUs, or if the user says so."""
    if machine.compile == "off" or learner.adapter is not None:
        return Choice(learner.forward, False, "")
    mesh = learner.parallel.mesh
    if mesh.divides_model or mesh.context > 1:
        return Choice(learner.forward, False, "not compiled: several processes divide the model or its context")
    if mesh.size > 1:
        if machine.compile == "on" or (machine.device.type == "cuda" and has_compiler()):
            return Choice(learner.parallel.compiled(), True, "compiled, as GPUs gain by it")
        return Choice(learner.forward, False, "not compiled: several processes make no trial")
    batch = learner.task.batch(step, learner.model).split(settings.accumulate)[0].to(machine.device)
    passes = (settings.steps - step) * settings.accumulate
    return CompileTrial(learner.model, learner.task, batch, machine).choose(passes, settings.accumulate == 1)


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
