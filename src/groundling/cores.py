"""How many cores this process may use, without PyTorch, which takes seconds to import."""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = "/sys/fs/cgroup/cpu.max"
"""The file with a container's CPU quota, on Linux."""


def granted_cores() -> int:
    """Logical cores that this process may run on, no more than its container's CPU quota allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        return max(1, min(cores, count_cores(Path(QUOTA).read_text(encoding="ascii"))))
    except (OSError, ValueError):  # no container, or one without a quota
        return cores


def count_cores(text: str) -> int:
    """Cores in `200000 100000` (quota and period in microseconds) or in `0-7,16` (a list of cores)."""
    if len(words := text.split()) == 2:
        return -(-int(words[0]) // int(words[1]))
    ends = [[int(end) for end in part.split("-")] for part in text.strip().split(",")]
    return sum(part[-1] - part[0] + 1 for part in ends)
