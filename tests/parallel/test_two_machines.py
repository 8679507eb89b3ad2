"""Two machines train one run: two network namespaces with a cable between them, each with a name and mounts of its own.

They share this machine's disk, as machines of a cluster share one, unless a test hides a folder from one of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from started import environment
from test_processes import WORDS, lines, losses

import groundling

pytestmark = pytest.mark.slow


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Machine:
    namespace: str
    address: str
    name: str
    hosts: Path

    def command(self, words: list[str], hidden: Path | None = None) -> list[str]:
        """A command there. It does not see what is in the folder `hidden`."""
        steps = [f"mount --bind {self.hosts} /etc/hosts", f"hostname {self.name}"]
        if hidden:
            steps.append(f"mount -t tmpfs none {hidden}")
        script = " && ".join([*steps, 'exec "$@"'])
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount", "sh", "-c", script, "sh", *words]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    if sys.platform != "linux" or not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("needs Linux, with ip and unshare")
    hosts = tmp_path_factory.mktemp("etc") / "hosts"
    hosts.write_text("127.0.0.1 localhost\n10.77.0.1 node-a\n10.77.0.2 node-b\n")
    two = [Machine(f"gl{os.getpid()}{x}", f"10.77.0.{i}", f"node-{x}", hosts) for i, x in ((1, "a"), (2, "b"))]
    try:
        try:
            for each in two:
                ip("netns", "add", each.namespace)
            a, b = (each.namespace for each in two)
            ip("-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b)
            for each in two:
                ip("-n", each.namespace, "addr", "add", f"{each.address}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    ip("-n", each.namespace, "link", "set", device, "up")
            subprocess.run(two[0].command(["true"]), check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield two
    finally:
        for each in two:
            subprocess.run(["ip", "netns", "del", each.namespace], capture_output=True)


class Both:
    """The same command on both machines, by torchrun, with `processes` on each."""

    def __init__(
        self, machines: list[Machine], words: list[str], processes: int = 1, *options: str, hidden: Path | None = None
    ) -> None:
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(processes),
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "node-a:29500", "--rdzv-id", "my-run", *options,
        ]  # fmt: skip
        self.started = [
            subprocess.Popen(
                machine.command([*torchrun, "-m", "groundling", *words], hidden if i else None),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(GLOO_SOCKET_IFNAME="eth0"),
            )
            for i, machine in enumerate(machines)
        ]

    def process(self, machine: int, local_rank: int = 0) -> psutil.Process:
        children = psutil.Process(self.started[machine].pid).children(recursive=True)
        return next(child for child in children if child.environ().get("LOCAL_RANK") == str(local_rank))

    def wait(self, seconds: float = 200) -> list[tuple[int, list[str]]]:
        """The exit code and the sentences of groundling on each machine."""
        ended = []
        try:
            for process in self.started:
                _, err = process.communicate(timeout=seconds)
                said = [line for line in err.splitlines() if line.startswith("groundling (")]
                ended.append((process.returncode, said))
        finally:
            self.kill()
        return ended

    def kill(self) -> None:
        for process in self.started:
            if process.poll() is None:
                for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                    each.kill()


def wait_for_checkpoint(both: Both, folder: Path, after: int = 0) -> None:
    deadline = time.monotonic() + 200
    while not any(line["step"] > after for line in lines(folder, "saved")):
        assert all(process.poll() is None for process in both.started), both.wait()
        if time.monotonic() > deadline:
            both.kill()
            pytest.fail("no checkpoint")
        time.sleep(0.1)


@pytest.fixture
def train(text_file: Path) -> list[str]:
    return ["train", str(text_file.absolute()), *WORDS, "--name", "run", "--out", str(Path("runs").absolute())]


@pytest.mark.parametrize(
    ("processes", "parallel", "mesh"),
    [(1, "ddp", "2 (data 2)"), (1, "fsdp", "2 (data 2, shards 2)"), (2, "fsdp", "4 (data 4, shards 2)")],
)
def test_two_machines_train_like_one_process(
    machines: list[Machine], train: list[str], text_file: Path, processes: int, parallel: str, mesh: str
) -> None:
    """Also where each machine has a whole copy of the weights, in shards."""
    ended = Both(machines, [*train, "--steps", "20", "--parallel", parallel], processes).wait()
    assert ended == [(0, []), (0, [])]
    run = groundling.load("runs/run")
    assert run.finished and run.record.bits["processes"] == mesh
    words = ["train", str(text_file), *WORDS, "--steps", "20", "--name", "alone", "--out", "runs"]
    subprocess.run([sys.executable, "-m", "groundling", *words], check=True, capture_output=True, env=environment())
    assert losses(Path("runs/run")) == pytest.approx(losses(Path("runs/alone")), abs=2e-3)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_both_machines_and_the_same_command_goes_on(
    machines: list[Machine], train: list[str], killed: int
) -> None:
    folder = Path("runs/run").absolute()
    both = Both(machines, [*train, "--steps", "1000000"])
    wait_for_checkpoint(both, folder)
    both.process(killed).kill()
    began = time.monotonic()
    ended = both.wait()
    assert time.monotonic() - began < 60
    assert all(status != 0 for status, _ in ended)
    assert ended[killed][1] == []
    assert ended[1 - killed][1] == [
        f"groundling (rank {1 - killed}): The connection to another process is lost. Nothing that was saved is lost: "
        "run the same command on all machines again to continue."
    ]
    saved = groundling.load(folder).checkpoints.steps()[-1]
    both = Both(machines, [*train, "--steps", "1000000"])
    wait_for_checkpoint(both, folder, after=saved)
    for process in both.started:
        process.send_signal(signal.SIGTERM)
    both.wait()
    assert lines(folder, "paused")[-1]["step"] == len(losses(folder)) > saved


def test_max_restarts_starts_all_again(machines: list[Machine], train: list[str]) -> None:
    folder = Path("runs/run").absolute()
    both = Both(machines, [*train, "--steps", "200"], 1, "--max-restarts", "2")
    wait_for_checkpoint(both, folder)
    both.process(1).kill()
    ended = both.wait()
    assert [status for status, _ in ended] == [0, 0], ended
    assert groundling.load(folder).finished and len(losses(folder)) == 200


def test_without_a_shared_folder_the_other_machine_says_so(machines: list[Machine], train: list[str]) -> None:
    runs = Path("runs").absolute()
    runs.mkdir()
    began = time.monotonic()
    (first, said), (second, sentences) = Both(machines, [*train, "--steps", "20"], hidden=runs).wait()
    assert time.monotonic() - began < 100 and first != 0 and second == 1
    assert len(said) == 1 and "connection to another process is lost" in said[0]
    assert sentences == [
        f"groundling (rank 1): This machine does not see {runs}/run, the folder of the run. Put runs ($GROUNDLING_RUNS "
        "or --out), texts and the cache ($GROUNDLING_CACHE) on a disk that all machines see under the same path."
    ]


def test_the_cache_may_be_a_machines_own(machines: list[Machine], train: list[str]) -> None:
    """The other machine tokenizes the text itself."""
    cache = Path(os.environ["GROUNDLING_CACHE"])
    cache.mkdir()
    ended = Both(machines, [*train, "--steps", "10"], hidden=cache).wait()
    assert [status for status, _ in ended] == [0, 0], ended
