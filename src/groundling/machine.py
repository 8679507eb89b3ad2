"""What this machine offers, measured or looked up, and what groundling uses of it.

Nothing happens at import. `choose` resolves the `auto` settings, `survey` lists everything.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy
import psutil
import torch

from groundling import __version__
from groundling.config import MachineSettings
from groundling.cores import QUOTA, count_cores

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CPU_DTYPES = ("float32", "bfloat16")
COMMAND_STARTED = "GROUNDLING_COMMAND_STARTED"  # the variable with the time when a command started several processes


@dataclass(frozen=True)
class Machine:
    """Where a model runs. `reasons` explains each automatic choice."""

    device: torch.device
    dtype: torch.dtype
    compile: Literal["auto", "on", "off"]  # auto: training/compiling.py tries it
    threads: int
    reasons: tuple[str, ...] = ()
    evaluation_batch: int | None = None
    """Windows per forward pass of an evaluation, if memory was too small for the usual number."""

    def describe(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "device": str(self.device),
            "dtype": _name(self.dtype),
            "compile": self.compile,
            "threads": self.threads,
            "reasons": list(self.reasons),
        }

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for training and evaluation: weights stay float32, matrix products run in `dtype`."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @property
    def runs_ahead(self) -> bool:
        """Whether training starts several steps before it reads the results of the first. Reading makes a GPU wait for
        Python. float16 has to read the result of each step, to set its loss scale."""
        return self.device.type == "cuda" and self.dtype != torch.float16

    def own_randomness(self) -> AbstractContextManager[Any]:
        """A context whose random numbers do not change PyTorch's random state outside."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])


@contextmanager
def default_torch() -> Iterator[None]:
    """PyTorch's own defaults, whatever a notebook has set: gradients, float32, and new tensors on the CPU."""
    with ExitStack() as stack, torch.inference_mode(False), torch.enable_grad():
        if torch.get_default_device().type != "cpu":  # otherwise it would only slow each call down
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield


def choose(settings: MachineSettings, decided: dict[str, Any] | None = None) -> Machine:
    """Turn `auto` into this machine's device, dtype and threads.

    `decided` is the result of `describe` when a run began. If the kind of device is still the same, the run continues
    with the same dtype, compiler choice and threads, to the bit.

    Raises ValueError if this machine does not have the device.
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
    elif threads < torch.get_num_threads() or local_size() > 1:
        torch.set_num_threads(threads)
        reasons.append(f"threads {threads}: {reason}")
    dtype = DTYPES.get(settings.dtype) or DTYPES.get(decided.get("dtype", ""))
    if dtype is None:
        dtype, reason = _best_dtype(device)
        reasons.append(f"dtype {_name(dtype)}: {reason}")
    compile = settings.compile if settings.compile != "auto" else decided.get("compile", "auto")
    batch = decided.get("evaluation_batch")
    return Machine(device, dtype, compile, torch.get_num_threads(), tuple(reasons), batch)


@cache
def keep_freed_memory() -> bool:
    """Make the C library keep freed memory instead of returning it to the system. Returns whether that worked.

    Each training step allocates the memory that the last one freed. From the system, it comes back page by page, each
    cleared first, which takes a third of a step's time (docs/LOG.md). Only glibc returns memory and can be stopped; it
    still returns allocations of 1 GiB or more, or of 32 MiB or more if it is old.
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
    "cuda": "PyTorch found an NVIDIA or AMD GPU",
    "mps": "PyTorch found an Apple GPU",
    "cpu": "PyTorch found no GPU that it can use",
}


def _device(name: str) -> torch.device:
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if has[kind])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is not a device. Use auto, cpu, cuda, cuda:N or mps.") from None
    if not has.get(device.type, False):
        available = ", ".join(kind for kind in has if has[kind])
        raise ValueError(f"--device {name}: PyTorch finds no such device on this machine. Available: {available}.")
    if device == torch.device("cuda") and local_size() > 1:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s).")
    return device


def local_size() -> int:
    """How many processes of a run torchrun started on this machine. 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _best_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        # Older GPUs emulate bfloat16, slower than float32. By default, PyTorch counts that as support.
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU supports it natively"
        return torch.float16, "the GPU does not support bfloat16 natively (float16 uses loss scaling)"
    if device.type == "mps":
        return torch.float32, "the safe choice on Apple GPUs"
    if not _cpu_has_bfloat16():
        # Without these instructions, PyTorch emulates bfloat16, up to 500 times slower.
        return torch.float32, "the CPU has no bfloat16 instructions"
    speed = {name: matmul_gflops(name) for name in _CPU_DTYPES}
    dtype = "bfloat16" if speed["bfloat16"] > 1.2 * speed["float32"] else "float32"
    return DTYPES[dtype], "measured " + " and ".join(f"{speed[n]:,.0f} GFLOP/s in {n}" for n in _CPU_DTYPES)


def _cpu_has_bfloat16() -> bool:
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def matmul_gflops(dtype: str, size: int = 1024) -> float:
    """Speed of the product of two `size` × `size` matrices on the CPU, in GFLOP/s: the median of five measurements."""
    return _product_gflops(DTYPES[dtype], torch.device("cpu"), size, size, size)


def _product_gflops(dtype: torch.dtype, device: torch.device, m: int, k: int, n: int) -> float:
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    return 2 * m * k * n / _median_seconds(lambda: a @ b, device) / 1e9


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    def finished() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    finished()  # the first call also initializes the library
    return statistics.median(timeit.repeat(finished, number=1, repeat=5))


@dataclass(frozen=True)
class Speed:
    """What limits a training step: GFLOP/s of matrix products in a model's shapes, and GB/s of memory copies."""

    gflops: float
    gbytes: float


def measure_speed(machine: Machine, n_embd: int, tokens: int) -> Speed:
    """Measure the matrix products of a transformer block of width `n_embd` on `tokens` tokens, and memory copies."""
    shapes = [(tokens, n_embd, 4 * n_embd), (tokens, 4 * n_embd, n_embd), (n_embd, tokens, 4 * n_embd)]
    gflops = statistics.harmonic_mean(_product_gflops(machine.dtype, machine.device, *shape) for shape in shapes)
    block = torch.ones(64 << 20, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(block)
    seconds = _median_seconds(lambda: target.copy_(block), machine.device)
    return Speed(gflops, 2 * block.numel() / seconds / 1e9)  # each byte is read and written


def usable_threads() -> tuple[int, str]:
    """How many threads to use, and why: one per fast core that this process may use. Several processes divide them."""
    here, asked = local_size(), os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0 and not (here > 1 and asked == "1"):  # 1 is what torchrun sets by itself
        return int(asked), "set by OMP_NUM_THREADS"
    counts = {"physical cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        counts["cores available to this process"] = len(os.sched_getaffinity(0))
    for path, meaning in _CORE_FILES.items():
        try:
            counts[meaning] = count_cores(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue  # not this kind of machine
    if _FAST_CORES in counts and (os.cpu_count() or 1) > counts["physical cores"]:
        counts[_FAST_CORES] //= 2  # each is listed with its hyper-thread
    meaning = min(counts, key=lambda key: counts[key])
    divided = f", divided by {here} processes" if here > 1 else ""
    return max(1, counts[meaning] // here), f"{counts[meaning]} {meaning}{divided}"


_FAST_CORES = "fast cores (the slow ones would delay them)"  # on Macs, PyTorch itself counts only the fast ones
_CORE_FILES = {
    QUOTA: "cores allowed by the container's CPU quota",
    "/sys/devices/cpu_core/cpus": _FAST_CORES,
}


def has_compiler() -> bool:
    """Whether torch.compile has what it needs: a C++ compiler for CPUs, Triton for GPUs."""
    if torch.cuda.is_available():
        return importlib.util.find_spec("triton") is not None
    return compiler_path() is not None


def compiler_path() -> str | None:
    """The path of the C++ compiler that torch.compile uses, or None."""
    usual = {"nt": "cl", "darwin": "clang++"}.get(os.name if os.name == "nt" else sys.platform, "g++")
    return shutil.which(os.environ.get("CXX") or usual)


def survey() -> dict[str, Any]:
    """Everything that `groundling doctor` shows, ready for JSON. Memory in bytes, speed in GFLOP/s and GB/s."""
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
    """Versions that decide whether a run can be repeated to the bit."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def bits(machine: Machine) -> dict[str, str]:
    """What decides the last bits of all results: if it is the same, so are they.

    Each of these changes them in some model, or may according to PyTorch's docs; docs/reliability.md lists what was
    tried. Python and NumPy do not: NumPy only orders the text, by integers, and promises not to change its seeding.
    """
    on_gpu = machine.device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": machine.device.type,
        "processor": torch.cuda.get_device_name(machine.device) if on_gpu else processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "dtype": _name(machine.dtype),
        "compile": machine.compile,
        "threads": str(machine.threads),
    }


def process_age() -> float:
    """Seconds since this process started, or the command that started it. A time budget includes the imports."""
    return max(0.0, time.time() - float(os.environ.get(COMMAND_STARTED) or psutil.Process().create_time()))


def processor() -> str:
    """The CPU's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory() -> int:
    """Peak memory of this process so far, in bytes: GPU memory if there is a GPU, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)
