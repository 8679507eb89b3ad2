"""What this machine offers, measured or looked up, and what groundling will use of it.

Nothing happens at import. `choose` turns the `auto` settings into facts; `survey` tells them all.
"""

from __future__ import annotations

import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import torch

from groundling.config import MachineSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Machine:
    """Where a model runs. `reasons` says, a sentence each, why these were chosen."""

    device: torch.device
    dtype: torch.dtype
    compile: bool
    threads: int
    reasons: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The same in plain values, for JSON."""
        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "compile": self.compile,
            "threads": self.threads,
            "reasons": list(self.reasons),
        }

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for training and evaluation: weights stay float32, matrix products run in `dtype`."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def caller(self, notice: Callable[[str], None]) -> Callable[..., torch.Tensor]:
        """What `GPT.forward` takes as `through`: compiles each part when it first comes, if that was chosen and works.

        Parts of a kind share one compiled function: six blocks take a sixth of the time, and run no slower. The notice
        says why if it does not work.
        """
        if self.compile:
            try:
                # The compiler proves itself on something small, since it fails late and at length.
                torch.compile(lambda x: (x * 2).relu().sum())(torch.ones(64, device=self.device))
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                notice(f"torch.compile does not work on this machine ({reason[:120]}); training runs uncompiled.")
            else:
                compiled = cache(functools.partial(torch.compile, dynamic=False))
                return lambda part, *arguments: compiled(part)(*arguments)
        return lambda part, *arguments: part(*arguments)


def choose(settings: MachineSettings) -> Machine:
    """Turn `auto` into this machine's device, dtype and compiler choice.

    Raises ValueError if a device was named that is not here.
    """
    reasons = []
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = _device(settings.device)
    if settings.device == "auto":
        reasons.append(f"device {device}: {_DEVICE_REASONS[device.type]}")
    dtype, reason = DTYPES.get(settings.dtype), ""
    if dtype is None:
        dtype, reason = _best_dtype(device)
        reasons.append(f"dtype {str(dtype).removeprefix('torch.')}: {reason}")
    return Machine(device, dtype, settings.compile == "on", torch.get_num_threads(), tuple(reasons))


_DEVICE_REASONS = {
    "cuda": "an NVIDIA or AMD GPU is here",
    "mps": "an Apple GPU is here",
    "cpu": "no GPU is here that PyTorch can use",
}


def _device(name: str) -> torch.device:
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if has[kind]))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is no device; use auto, cpu, cuda, cuda:N or mps.") from None
    if not has.get(device.type, False):
        here = ", ".join(kind for kind, is_here in has.items() if is_here)
        raise ValueError(f"--device {name}: PyTorch finds no such device on this machine; it has {here}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s).")
    return device


def _best_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        # Older GPUs emulate bfloat16, slower than float32, and PyTorch says yes to that unless asked so.
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU computes it natively"
        return torch.float32, "the GPU has no bfloat16 of its own"
    if device.type == "mps":
        return torch.float32, "the safe choice on Apple GPUs"
    if not _cpu_has_bfloat16():
        # Without the instructions PyTorch emulates bfloat16, up to 500 times slower.
        return torch.float32, "the CPU has no bfloat16 instructions"
    speed = {name: matmul_gflops(name) for name in DTYPES}
    dtype = "bfloat16" if speed["bfloat16"] > 1.2 * speed["float32"] else "float32"
    return DTYPES[dtype], "measured " + " and ".join(f"{speed[n]:,.0f} GFLOP/s in {n}" for n in DTYPES)


def _cpu_has_bfloat16() -> bool:
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))


@cache
def matmul_gflops(dtype: str, size: int = 1024) -> float:
    """Matrix products on the CPU, in 10^9 floating-point operations a second: the median of five."""
    a, b = (torch.randn(size, size).to(DTYPES[dtype]) for _ in range(2))
    a @ b  # the first one pays for setting the library up
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds) / 1e9


def has_compiler() -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler for CPUs, Triton for GPUs."""
    if torch.cuda.is_available():
        import importlib.util

        return importlib.util.find_spec("triton") is not None
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        return bool(get_cpp_compiler())
    except Exception:  # whatever it is that this private door raises, the answer is no
        return False


def survey() -> dict[str, Any]:
    """All that `groundling doctor` tells, ready for JSON. Memory is in bytes, speed in GFLOP/s."""
    from groundling import __version__

    machine = choose(MachineSettings())
    memory = psutil.virtual_memory()
    return machine.describe() | {
        "compiler_found": has_compiler(),
        "cpu": {
            "name": _cpu_name(),
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "logical_cores": os.cpu_count(),
            "bfloat16_instructions": _cpu_has_bfloat16(),
            "matmul_gflops": {
                name: round(matmul_gflops(name)) for name in DTYPES if name == "float32" or _cpu_has_bfloat16()
            },
        },
        "memory": {"total": memory.total, "available": memory.available},
        "gpus": [
            {"name": p.name, "memory": p.total_memory}
            for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ],
        "versions": versions() | {"groundling": __version__},
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """What decides whether a run can be repeated to the bit."""
    import numpy

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory() -> int:
    """The most memory in bytes that this process has held so far: on the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource
    import sys

    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)
