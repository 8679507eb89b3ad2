"""Processes that train one run: started by the command and by torchrun, stopped, killed, and started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from started import environment

import groundling
from groundling.config import MachineSettings
from groundling.run.start import use_processes
from tiny import TINY

SETTINGS = TINY | {
    "block_size": 16, "schedule": "constant", "warmup_steps": 0, "checkpoint_every": 5,
    "eval_every": 10, "sample_every": 0, "compile": "off",
}  # fmt: skip
del SETTINGS["steps"]
WORDS = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
GROUNDLING = [sys.executable, "-m", "groundling"]


def torchrun(n: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), *options, "-m", "groundling"]


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command, which is gone afterwards, with all that it has started."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        children = list[psutil.Process]()
        try:
            yield process
        finally:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                process.kill()
            for child in children:
                child.kill()


def done(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=400)


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    if not (folder / "metrics.jsonl").exists():
        return []
    # The last line may be written at this moment.
    whole = (folder / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
    return [line for line in map(json.loads, whole) if line["event"] == event]


def wait_for(process: subprocess.Popen[str], true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 200
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def of_rank(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    children = psutil.Process(process.pid).children(recursive=True)
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def losses(folder: Path) -> list[float]:
    """Of each step. Every step is there once."""
    steps = lines(folder, "step")
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    return [line["loss"] for line in steps]


@pytest.fixture
def train(text_file: Path) -> list[str]:
    """Words of a command that trains for ever."""
    return ["train", str(text_file), *WORDS, "--steps", "1000000", "--name", "run", "--out", "runs"]


@pytest.mark.skipif(sys.platform == "win32", reason="without SIGKILL")
def test_a_process_killed_while_it_saves_ends_the_command_and_the_run_continues(
    train: list[str], tmp_path: Path
) -> None:
    """The code that every Python runs first kills rank 1 as it writes its shard of the third checkpoint."""
    (tmp_path / "sitecustomize.py").write_text(_KILLED)
    folder, more = Path("runs/run").absolute(), environment(PYTHONPATH=str(tmp_path))
    command = [*GROUNDLING, *train, "--processes", "2", "--parallel", "fsdp"]
    done = subprocess.run(command, capture_output=True, text=True, env=more, timeout=200)
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr.strip() == (
        "groundling: The process of rank 1 was killed (SIGKILL). Nothing that was saved is lost: run the same command "
        "again to continue."
    )
    assert [line["step"] for line in lines(folder, "saved")] == [5, 10]
    last = groundling.load(folder).checkpoints.steps()[-1]
    assert last == 10
    end = last + 5
    notices: list[str] = []
    run = groundling.resume(folder, steps=end, on_event=lambda e: notices.append(getattr(e, "sentence", "")))
    assert run.finished and len(losses(folder)) == end
    assert any("processes 2 (data 2, shards 2) → 1" in notice for notice in notices)
    assert not list((folder / "checkpoints").glob(".tmp-*"))
    assert run.config.machine.processes == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="without these signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("start", ["command", "torchrun"])
def test_a_signal_saves_and_stops_all(number: signal.Signals, start: str, train: list[str], text_file: Path) -> None:
    folder = Path("runs/run").absolute()
    command = [*GROUNDLING, *train, "--processes", "2"] if start == "command" else [*torchrun(2), *train]
    command += ["--parallel", "fsdp" if number == signal.SIGINT else "ddp"]
    with running(command) as process:
        wait_for(process, lambda: len(lines(folder, "step")) > 7)
        process.send_signal(number)
        _, err = process.communicate(timeout=200)
    assert err.count("Saving and stopping.") == 1
    if start == "command":
        assert process.returncode == 128 + number
    stopped = groundling.load(folder).checkpoints.steps()[-1]
    assert lines(folder, "paused")[-1]["step"] == stopped == len(losses(folder))
    alone = groundling.train(text_file, **SETTINGS | {"steps": stopped}, name="alone", out="runs")
    assert losses(folder) == pytest.approx(losses(alone.folder), abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="without SIGKILL")
def test_orphans_save_and_stop(train: list[str]) -> None:
    folder = Path("runs/run").absolute()
    with running([*torchrun(2), *train]) as process:
        wait_for(process, lambda: len(lines(folder, "step")) > 7)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
    assert children and not alive
    assert lines(folder, "paused")[-1]["step"] == groundling.load(folder).checkpoints.steps()[-1]


@pytest.mark.slow
def test_a_program_trains_one_run_after_the_other(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        f"import groundling\n"
        f"for name in ('one', 'two', 'three'):\n"
        f"    groundling.train({str(text_file)!r}, name=name, out='runs', **{SETTINGS | {'steps': 6}!r})\n"
    )
    ended = done([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "program.py"])
    assert ended.returncode == 0, ended.stderr
    assert losses(Path("runs/one")) == losses(Path("runs/two")) == losses(Path("runs/three"))


@pytest.mark.slow
def test_a_run_changes_its_number_of_processes(text_file: Path) -> None:
    """4 -> 2 -> 1 -> 4, by torchrun, the command and Python. Each resumes where the other stopped."""
    folder = Path("runs/run").absolute()
    start = ["train", str(text_file), *WORDS, "--steps", "10", "--name", "run", "--out", "runs"]
    assert done([*torchrun(4), *start, "--parallel", "fsdp"]).returncode == 0
    resumed = done([*GROUNDLING, "resume", str(folder), "--steps", "20", "--processes", "2", "--parallel", "fsdp"])
    assert resumed.returncode == 0 and "processes 4 (data 4, shards 4) → 2 (data 2, shards 2)" in resumed.stdout
    groundling.resume(folder, steps=30)
    resumed = done([*GROUNDLING, "resume", str(folder), "--steps", "40", "--processes", "4", "--parallel", "fsdp"])
    assert resumed.returncode == 0, resumed.stderr
    assert done([*GROUNDLING, "resume", str(folder), "--steps", "45"]).returncode == 0
    assert groundling.load(folder).record.bits["processes"] == "4 (data 4, shards 4)", "as many as before"
    alone = groundling.train(text_file, **SETTINGS | {"steps": 45}, name="alone", out="runs")
    assert losses(folder) == pytest.approx(losses(alone.folder), abs=2e-3)
    assert groundling.load(folder).evaluate()["loss"] == pytest.approx(alone.evaluate()["loss"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="without SIGKILL")
def test_torchrun_starts_them_again(train: list[str]) -> None:
    folder = Path("runs/run").absolute()
    train = [word if word != "1000000" else "400" for word in train]
    with running([*torchrun(2, "--max-restarts", "1"), *train]) as process:
        wait_for(process, lambda: len(lines(folder, "saved")) > 2)
        of_rank(process, 0).kill()
        _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert len(losses(folder)) == 400 and len(lines(folder, "started")) == 2


@pytest.mark.slow
def test_memory_that_runs_out_on_one_rank_starts_all_again(train: list[str], tmp_path: Path) -> None:
    """The code that every Python runs first lets rank 1 run out of memory, while its micro-batches are large."""
    (tmp_path / "sitecustomize.py").write_text(_OUT_OF_MEMORY)
    folder = Path("runs/run").absolute()
    train = [word if word != "1000000" else "12" for word in train]
    command, more = [*GROUNDLING, *train, "--processes", "2"], environment(PYTHONPATH=str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, env=more, timeout=400)
    assert done.returncode == 0, done.stderr
    assert len(losses(folder)) == 12
    training = groundling.load(folder).config.training
    assert (training.batch_size, training.accumulate) == (4, 2)
    assert "groundling (rank 1): Memory ran out in a training step. All processes must start again" in done.stderr


_OUT_OF_MEMORY = """
import os
if os.environ.get("RANK") == "1":
    import groundling.training.step as step
    made = step.micro_batches
    def micro_batches(batch, n, *others):
        for i, part in enumerate(made(batch, n, *others)):
            if len(part[0]) > 2:
                raise MemoryError
            yield part
    step.micro_batches = micro_batches
"""


_KILLED = """
import os, signal
if os.environ.get("RANK") == "1":
    from groundling.storage import Disk
    fill, files = Disk.fill, []
    def killed(self, path, write):
        files.append(path)
        if len(files) == 5:
            path.write_bytes(b"a part of it")
            os.kill(os.getpid(), signal.SIGKILL)
        fill(self, path, write)
    Disk.fill = killed
"""


def test_processes_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from groundling import machine

    monkeypatch.delenv("OMP_NUM_THREADS")
    cores, _ = machine.usable_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    threads, reason = machine.usable_threads()
    assert threads == max(1, cores // 2) and reason.endswith("divided by 2 processes")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it
    assert machine.usable_threads()[0] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.usable_threads()[0] == 3


def test_from_python_several_processes_need_torchrun(text_file: Path) -> None:
    with pytest.raises(ValueError, match=r"^--processes 2: this is one of 1 process.*torchrun --nproc-per-node 2"):
        groundling.train(text_file, processes=2, **TINY)


def test_as_many_processes_as_before_divide_the_work_as_before(text_file: Path) -> None:
    run = groundling.train(text_file, parallel="fsdp", **TINY)
    use_processes(run, MachineSettings(processes=4, tensor_parallel=2), {"processes", "tensor_parallel"})
    assert (run.config.machine.parallel, run.config.machine.tensor_parallel) == ("auto", 2), "another number"
    use_processes(run, MachineSettings(processes=4, parallel="ddp"), {"processes", "parallel"})
    assert (run.config.machine.parallel, run.config.machine.tensor_parallel) == ("ddp", 2)
    use_processes(run, MachineSettings())
    assert (run.config.machine.processes, run.config.machine.parallel, run.config.machine.tensor_parallel) == (
        1, "auto", 1,
    )  # fmt: skip


def test_other_commands_run_in_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from groundling.__main__ import main

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", "groundling (rank 0): eval runs in one process. "), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as exit:
            main(["eval", "run"])
        assert exit.value.code == 2
        assert capsys.readouterr().err.startswith(said)


def test_post_training_by_preferences_runs_in_one_process() -> None:
    with pytest.raises(ValueError, match=r"^dpo runs in one process"):
        groundling.dpo("x", "y", processes=2)
