"""What the devices of a large run can do, from their makers' data sheets, or measured on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from groundling.config import MachineSettings
from groundling.machine import choose, measure_speed


@dataclass(frozen=True)
class Device:
    """`teraflops` of dense bfloat16 products, `gigabytes` of memory, and GB/s: of memory, to the `per_node` devices of
    the same node (`link`), and to those of other nodes (`network`); the last two in each direction."""

    name: str
    teraflops: float
    gigabytes: float
    bandwidth: float
    link: float
    network: float
    per_node: int
    source: str


DEVICES = {
    "a100": Device("a100", 312, 80, 2039, 300, 25, 8, "NVIDIA A100 80GB SXM data sheet; 200 Gb/s InfiniBand"),
    "h100": Device("h100", 989, 80, 3350, 450, 50, 8, "NVIDIA H100 SXM data sheet; 400 Gb/s InfiniBand"),
    "h200": Device("h200", 989, 141, 4800, 450, 50, 8, "NVIDIA H200 SXM data sheet; 400 Gb/s InfiniBand"),
    "b200": Device("b200", 2250, 180, 8000, 900, 50, 8, "NVIDIA DGX B200 data sheet, an eighth; 400 Gb/s InfiniBand"),
    "rtx4090": Device("rtx4090", 165, 24, 1008, 25, 1.25, 8, "NVIDIA Ada whitepaper; PCIe 4.0, 10 Gb/s Ethernet"),
}


def this_machine() -> Device:
    """The CPU or GPU of this machine, as one node, with its measured speed."""
    machine = choose(MachineSettings())
    speed = measure_speed(machine, 192, 4096)
    memory = psutil.virtual_memory().total / 1e9
    return Device("cpu", speed.gflops / 1e3, memory, speed.gbytes, speed.gbytes / 2, 0.125, 1, "measured here")
