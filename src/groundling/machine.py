"""What this machine offers, measured or looked up, and what groundling will use of it.

Nothing happens at import. `choose` turns the `auto` settings into facts; `survey` tells them all.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from groundling.config import MachineSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CPU_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Machine:
    """Where a model runs. `reasons` says, a sentence each, why these were chosen."""

    device: torch.device
    dtype: torch.dtype
    compile: Literal["auto", "on", "off"]  # auto: training/compiling.py tries it
    threads: int
    reasons: tuple[str, ...] = ()
    evaluation_batch: int | None = None
    """Windows of an evaluation that fit into memory at once, if fewer than usual were found to."""

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

    @property
    def runs_ahead(self) -> bool:
        """Whether training starts several steps before it looks at the results of the first: a look makes a GPU wait
        for Python. float16 looks at each step, to set its loss scale."""
        return self.device.type == "cuda" and self.dtype != torch.float16

    def own_randomness(self) -> AbstractContextManager[Any]:
        """Whatever is drawn inside leaves PyTorch's random numbers outside as they were."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])


def choose(settings: MachineSettings, decided: dict[str, Any] | None = None) -> Machine:
    """Turn `auto` into this machine's device, dtype and threads.

    `decided` is what `describe` gave when a run began: where the device is still of that kind, the run goes on with
    the same dtype, compiler choice and threads, to the bit.

    Raises ValueError if a device was named that is not here.
    """
    reasons = []
    decided = decided or {}
    device = _device(settings.device)
    if settings.device == "auto":
        reasons.append(f"device {device}: {_DEVICE_REASONS[device.type]}")
    if torch.device(decided.get("device", "meta")).type != device.type:
        decided = {}
    keep_freed_memory()
    threads, reason = usable_threads()
    if settings.threads or decided.get("threads"):
        torch.set_num_threads(settings.threads or min(decided["threads"], threads))
    elif threads < torch.get_num_threads():
        torch.set_num_threads(threads)
        reasons.append(f"threads {threads}: {reason}")
    dtype = DTYPES.get(settings.dtype) or DTYPES.get(decided.get("dtype", ""))
    if dtype is None:
        dtype, reason = _best_dtype(device)
        reasons.append(f"dtype {str(dtype).removeprefix('torch.')}: {reason}")
    compile = settings.compile if settings.compile != "auto" else decided.get("compile", "auto")
    batch = decided.get("evaluation_batch")
    return Machine(device, dtype, compile, torch.get_num_threads(), tuple(reasons), batch)


@cache
def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next who asks, and return whether it does.

    Each training step asks for the memory that the last one freed. If the system had it in between, it comes back page
    by page, each of them cleared first: a third of the time of a step (docs/LOG.md). Only glibc gives it back and can
    be told not to; for allocations from a GiB on it goes on to do so, or from 32 MiB on if it is an old one.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    never = library.mallopt(_TRIM_THRESHOLD, -1)
    return bool(never and any(library.mallopt(_MMAP_THRESHOLD, size) for size in (2**30, 2**25)))


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # from malloc.h

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
        return torch.float16, "the GPU has no bfloat16 of its own; the loss is scaled to stay in its range"
    if device.type == "mps":
        return torch.float32, "the safe choice on Apple GPUs"
    if not _cpu_has_bfloat16():
        # Without the instructions PyTorch emulates bfloat16, up to 500 times slower.
        return torch.float32, "the CPU has no bfloat16 instructions"
    speed = {name: matmul_gflops(name) for name in _CPU_DTYPES}
    dtype = "bfloat16" if speed["bfloat16"] > 1.2 * speed["float32"] else "float32"
    return DTYPES[dtype], "measured " + " and ".join(f"{speed[n]:,.0f} GFLOP/s in {n}" for n in _CPU_DTYPES)


def _cpu_has_bfloat16() -> bool:
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))


@cache
def matmul_gflops(dtype: str, size: int = 1024, device: str = "cpu") -> float:
    """Matrix products of `size` squared, in 10^9 floating-point operations a second: the median of five."""
    return _product_gflops(dtype, size, size, size, device)


def _product_gflops(dtype: str, m: int, k: int, n: int, device: str) -> float:
    a, b = torch.randn(m, k, device=device).to(DTYPES[dtype]), torch.randn(k, n, device=device).to(DTYPES[dtype])
    return 2 * m * k * n / _median_seconds(lambda: a @ b, device) / 1e9


def _median_seconds(work: Callable[[], object], device: str, times: int = 5) -> float:
    def finish() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    work()  # the first one pays for setting the library up
    finish()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        finish()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@dataclass(frozen=True)
class Speed:
    """What bounds a training step: `gflops` of matrix products of a model's shapes, `gbytes` copied a second."""

    gflops: float
    gbytes: float


def measure_speed(machine: Machine, n_embd: int, tokens: int) -> Speed:
    """The speed of matrix products as a block of this width makes them for so many tokens, and of copying."""
    dtype = str(machine.dtype).removeprefix("torch.")
    device, tokens = str(machine.device), min(tokens, 8192)
    shapes = [(tokens, n_embd, 4 * n_embd), (tokens, 4 * n_embd, n_embd), (n_embd, tokens, 4 * n_embd)]
    seconds_a_gflop = [1 / _product_gflops(dtype, *shape, device) for shape in shapes]
    block = torch.ones(64 << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    copied = 2 * block.numel() / _median_seconds(lambda: target.copy_(block), device) / 1e9  # read and written
    return Speed(len(shapes) / sum(seconds_a_gflop), copied)


def usable_threads() -> tuple[int, str]:
    """How many threads are worth having, and why: one a fast core, and none beyond what this process is granted."""
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(asked) > 0:
        return int(asked), "OMP_NUM_THREADS says so"
    counts = {"physical cores are here": psutil.cpu_count(logical=False) or os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        counts["cores are granted to this process"] = len(os.sched_getaffinity(0))
    for path, meaning in _CORE_FILES.items():
        try:
            counts[meaning] = _count_cores(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue  # not this kind of machine
    fast = "fast cores are here, and the slow ones would hold them up"  # on Macs PyTorch itself counts only those
    if fast in counts and (os.cpu_count() or 1) > counts["physical cores are here"]:
        counts[fast] //= 2  # each was listed with its hyper-thread
    meaning = min(counts, key=lambda key: counts[key])
    return max(1, counts[meaning]), f"{counts[meaning]} {meaning}"


_CORE_FILES = {
    "/sys/fs/cgroup/cpu.max": "cores' worth of time is what this container may use",
    "/sys/devices/cpu_core/cpus": "fast cores are here, and the slow ones would hold them up",
}


def _count_cores(text: str) -> int:
    """Cores in `200000 100000` (a quota and a period, both in microseconds) or in `0-7,16` (a list of them)."""
    if len(words := text.split()) == 2:
        return -(-int(words[0]) // int(words[1]))
    ends = [[int(end) for end in part.split("-")] for part in text.strip().split(",")]
    return sum(part[-1] - part[0] + 1 for part in ends)


def has_compiler() -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler for CPUs, Triton for GPUs."""
    if torch.cuda.is_available():
        import importlib.util

        return importlib.util.find_spec("triton") is not None
    return compiler_path() is not None


def compiler_path() -> str | None:
    """The C++ compiler that torch.compile uses, if there is one."""
    usual = {"nt": "cl", "darwin": "clang++"}.get(os.name if os.name == "nt" else sys.platform, "g++")
    return shutil.which(os.environ.get("CXX") or usual)


def survey() -> dict[str, Any]:
    """All that `groundling doctor` tells, ready for JSON. Memory is in bytes, speed in GFLOP/s and GB/s."""
    from groundling import __version__

    machine = choose(MachineSettings())
    memory = psutil.virtual_memory()
    speed = measure_speed(machine, 192, 4096)
    return machine.describe() | {
        "speed": {"gflops": round(speed.gflops), "gbytes": round(speed.gbytes, 1)},
        "compiler_found": has_compiler(),
        "cpu": {
            "name": processor(),
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "logical_cores": os.cpu_count(),
            "bfloat16_instructions": _cpu_has_bfloat16(),
            "matmul_gflops": {
                name: round(matmul_gflops(name)) for name in _CPU_DTYPES if name == "float32" or _cpu_has_bfloat16()
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


def bits(machine: Machine) -> dict[str, str]:
    """What decides the last bits of all results: where it is the same, so are they.

    Each changes them in some model, or may by PyTorch's own word; docs/reliability.md tells what was tried. Python and
    NumPy do not: the latter only orders the text, by integers, and makes seeds as it promises to make them for good.
    """
    on_gpu = machine.device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": machine.device.type,
        "processor": torch.cuda.get_device_name(machine.device) if on_gpu else processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "dtype": str(machine.dtype).removeprefix("torch."),
        "compile": machine.compile,
        "threads": str(machine.threads),
    }


def process_age() -> float:
    """Seconds since this process began: importing takes some, and a budget counts them."""
    return max(0.0, time.time() - psutil.Process().create_time())


def processor() -> str:
    """The CPU's name."""
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

    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)
