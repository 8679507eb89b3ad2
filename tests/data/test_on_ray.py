"""Ray does the work on shards: the same result, whatever happens to its nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest

from groundling.data.shards import on_ray

SMALL_SHARDS = """
import sys
from groundling.data.shards import plan
plan.SHARD = 20_000
from groundling.__main__ import main
main(sys.argv[1:])
"""
# In the processes of nodes, a shard is slow, and writes down when it begins and ends, and its node.
SLOW = """
import os, sys, time
if any("default_worker.py" in word for word in sys.orig_argv):
    from groundling.data.shards.plan import Shard
    check = Shard.check
    def slow(shard, name):
        with open(os.environ["GROUNDLING_TEST_LOG"], "a") as log:
            log.write(f"{shard.name} {os.getppid()}\\n")
        time.sleep(0.15)
        check(shard, name)
    Shard.check = slow
"""


def command(text: Path, *words: str) -> list[str]:
    chosen = ["--tokenizer", "bpe", "--vocab-size", "270", "--deduplicate"]
    return [sys.executable, "-c", SMALL_SHARDS, "prepare", str(text), *chosen, *words]


def environment(cache: str) -> dict[str, str]:
    return os.environ | {"GROUNDLING_CACHE": cache}


def prepared(text: Path, cache: str, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(text, *words), capture_output=True, text=True, env=environment(cache), timeout=250)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def content(cache: str) -> dict[str, str]:
    """The hashes of all files in the cache."""
    files = {str(path.relative_to(cache)): path for path in Path(cache).rglob("*") if path.is_file()}
    files.pop(on_ray.MARK, None)
    return {name: sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.fixture
def text(write: Callable[..., Path], prose: str) -> Path:
    """Half a megabyte in several formats, with documents that are copies."""
    for i in range(4):
        entries = [json.dumps({"text": prose[j : j + 700]}) for j in range(i, 30_000, 350)]
        write(f"text/{i}.jsonl", "\n".join([*entries, '{"text": ""}']))
    write("text/a.txt", prose[:50_000])
    return write("text/b.txt", "another one").parent.absolute()


class Cluster:
    """A head, and two nodes with a core each."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        (folder / "sitecustomize.py").write_text(SLOW)
        self.log = folder / "log"
        variables = {"PYTHONPATH": str(folder), "GROUNDLING_TEST_LOG": str(self.log)}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.words = ("--executor", "ray", "--ray-address", self.cluster.address)

    def begun(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("ray")
    cluster = Cluster(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.cluster.shutdown()


def finished(cache: str) -> set[str]:
    """The shards whose tokens are there."""
    return {path.name for path in Path(cache).glob("tokens/*.shards/[0-9]*")}


def wait_for(process: subprocess.Popen[str], true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 150
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_ends_all_and_keeps_what_is_finished(text: Path, cluster: Cluster) -> None:
    with subprocess.Popen(
        command(text, *cluster.words), stderr=subprocess.PIPE, text=True, env=environment("c")
    ) as process:
        wait_for(process, lambda: len(finished("c")) > 4)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "groundling: stopped." in err
    time.sleep(2)
    kept, begun = finished("c"), len(cluster.begun())
    time.sleep(2)
    assert finished("c") == kept and len(cluster.begun()) == begun, "nobody is at work"
    done = prepared(text, "c", *cluster.words)
    assert done.returncode == 0 and "were tokenized before" in done.stderr
    assert not kept & {name for name, _ in cluster.begun()[begun:]}
    assert prepared(text, "local", "--processes", "1").returncode == 0
    assert content("c") == content("local")


@pytest.mark.slow
def test_an_error_is_that_of_one_process(text: Path, cluster: Cluster, write: Callable[..., Path]) -> None:
    entries = [json.dumps({"text": "some words " * 9}) for _ in range(2000)]
    write("text/3.jsonl", "\n".join([*entries, '{"text": 7}', *entries]))
    local, by_ray = prepared(text, "local", "--processes", "1"), prepared(text, "c", *cluster.words)
    assert local.returncode == by_ray.returncode == 1
    assert by_ray.stderr.splitlines()[-1] == local.stderr.splitlines()[-1]
    assert "line 2,001" in by_ray.stderr or "2001" in by_ray.stderr, by_ray.stderr
    assert content("c") == content("local")


@pytest.mark.slow
def test_a_node_is_killed(text: Path, cluster: Cluster) -> None:
    assert prepared(text, "local", "--processes", "1").returncode == 0
    before = len(cluster.begun())
    with subprocess.Popen(
        command(text, *cluster.words), stderr=subprocess.PIPE, text=True, env=environment("c")
    ) as process:
        wait_for(process, lambda: len(finished("c")) > 8)
        lost = cluster.nodes.pop()
        raylet = lost.all_processes["raylet"][0].process.pid
        workers = psutil.Process(raylet).children(recursive=True)
        for each in (psutil.Process(raylet), *workers):
            each.kill()
        n = len(cluster.begun())
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert content("c") == content("local")
    assert {node for _, node in cluster.begun()[before:n]} >= {str(raylet)}, "it was at work"
    assert {node for _, node in cluster.begun()[n + 1 :]} == {
        str(cluster.nodes[0].all_processes["raylet"][0].process.pid)
    }


def test_a_node_must_see_the_same(write: Callable[..., Path]) -> None:
    shared = on_ray.shared_by_nodes()
    assert on_ray.work(shared, len, ("abc",)) == (3, None)
    for changed, said in (
        ({"content": b"other"}, "does not share the folder"), ({"version": "0.0.1"}, "not 0.0.1. Install the same on"),
        ({"mark": Path("nowhere").absolute()}, "on a disk that all nodes of the cluster see"),
    ):  # fmt: skip
        result, error = on_ray.work(on_ray.Shared(**vars(shared) | changed), len, ("abc",))
        assert result is None and isinstance(error, OSError) and said in str(error.strerror)
    _, error = on_ray.work(shared, lambda: Path("nowhere.txt").read_bytes(), ())
    assert "does not see nowhere.txt. Put the text" in str(error)


def test_a_shard_that_another_node_has_finished_is_used(tmp_path: Path) -> None:
    tries = iter([OSError(39, "Directory not empty"), None])

    def once() -> str:
        if error := next(tries):
            raise error
        return "from its folder"

    assert on_ray.work(on_ray.shared_by_nodes(), once, ()) == ("from its folder", None)
