"""What is chosen for a machine: from what it is, from what was measured, and from what a run began with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from groundling import cores, machine
from groundling.config import MachineSettings
from groundling.data.shards.pool import processes_for
from groundling.machine import Speed, choose, keep_freed_memory, measure_speed, usable_threads


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda logical: 16)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(machine, "_CORE_FILES", {})


CONTAINER, FAST = machine._CORE_FILES.values()  # what their files are about


def _core_file(monkeypatch: pytest.MonkeyPatch, path: Path, meaning: str, content: str) -> None:
    path.write_text(content + "\n", encoding="ascii")
    monkeypatch.setattr(machine, "_CORE_FILES", {str(path): meaning})


@pytest.mark.usefixtures("sixteen_cores")
def test_a_thread_for_each_core() -> None:
    assert usable_threads() == (16, "16 physical cores")


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(("quota", "threads"), [("200000 100000", 2), ("150000 100000", 2), ("max 100000", 16)])
def test_no_more_threads_than_a_container_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, threads: int
) -> None:
    _core_file(monkeypatch, tmp_path / "cpu.max", CONTAINER, quota)
    assert usable_threads()[0] == threads


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(("quota", "processes"), [("150000 100000", 2), ("max 100000", 16), ("3200000 100000", 16)])
def test_no_more_processes_than_a_container_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, processes: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n", encoding="ascii")
    monkeypatch.setattr(cores, "QUOTA", str(tmp_path / "cpu.max"))
    assert processes_for(2**30) == processes and processes_for(2**20) == 1 and processes_for(2**30, 5) == 5


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(("cpus", "threads"), [("0-7", 8), ("0-3,8-11", 8), ("0", 1)])
def test_slow_cores_do_not_hold_up_fast_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpus: str, threads: int
) -> None:
    _core_file(monkeypatch, tmp_path / "cpus", FAST, cpus)
    assert usable_threads()[0] == threads


@pytest.mark.usefixtures("sixteen_cores")
def test_hyper_threads_are_no_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 24)  # 8 fast cores with two threads each, 8 slow ones
    _core_file(monkeypatch, tmp_path / "cpus", FAST, "0-15")
    assert usable_threads()[0] == 8


@pytest.mark.usefixtures("sixteen_cores")
def test_a_process_keeps_to_the_cores_it_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert usable_threads() == (3, "3 cores available to this process")


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert usable_threads()[0] == 3


def test_speed_is_measured() -> None:
    speed = measure_speed(choose(MachineSettings(device="cpu", dtype="float32")), 64, 256)
    assert isinstance(speed, Speed)
    assert 1 < speed.gflops < 1e6
    assert 0.1 < speed.gbytes < 1e5


def test_a_run_goes_on_with_what_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "matmul_gflops", None)  # nothing is measured again
    decided = {"device": "cpu", "dtype": "bfloat16", "compile": "on", "threads": 1}
    threads = torch.get_num_threads()
    try:
        chosen = choose(MachineSettings(device="cpu"), decided)
    finally:
        torch.set_num_threads(threads)
    assert (chosen.dtype, chosen.compile, chosen.threads) == (torch.bfloat16, "on", 1)


def test_what_was_decided_for_a_gpu_does_not_bind_a_cpu() -> None:
    decided = {"device": "cuda:0", "dtype": "float16", "compile": "on", "threads": 1}
    chosen = choose(MachineSettings(device="cpu"), decided)
    assert (chosen.dtype != torch.float16, chosen.compile) == (True, "auto")


def test_what_the_user_says_comes_before_what_was_decided() -> None:
    decided = {"device": "cpu", "dtype": "bfloat16", "compile": "on", "threads": torch.get_num_threads()}
    chosen = choose(MachineSettings(device="cpu", dtype="float32", compile="off"), decided)
    assert (chosen.dtype, chosen.compile) == (torch.float32, "off")


@pytest.mark.parametrize(
    ("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)], ids=["native", "emulated"]
)
def test_a_gpu_that_only_emulates_bfloat16_gets_float16(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert machine._best_dtype(torch.device("cuda"))[0] == dtype


def test_what_is_freed_is_kept_for_the_next_who_asks() -> None:
    resource = pytest.importorskip("resource")
    if not keep_freed_memory():
        pytest.skip("the C library here cannot be told")
    for _ in range(21):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(4_000_000)  # 4,000 pages
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 400  # of the last time


def test_no_threads_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert machine.usable_threads()[0] >= 1
