"""What every test stands on: a cache and working folder of its own, real text, and settings that train in a second."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny import TINY

LONGEST = (
    "test_resume.py", "test_resume_methods.py", "test_studio.py", "test_diagnosis.py", "test_cli.py", "test_pasted.py",
    "test_numba_decoder.py", "test_event_loop.py", "test_selftest.py", "test_notebook.py", "test_train.py",
    "test_streams.py", "test_micro_batches.py", "test_killed_methods.py", "test_out_of_memory.py", "test_benchmarks.py",
    "test_demo.py", "test_kills.py", "test_studio_tuned.py", "test_signals.py", "test_life.py",
    "test_chapters.py", "test_share.py", "test_data_parallel.py", "test_divided.py", "test_eject.py",
)  # fmt: skip


def pytest_configure() -> None:
    """PyTorch compiles in this process, as a pool of others would import it once more each. It reads this early."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file is run by one process, so the longest ones begin first: none should run alone at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or left in the user's cache or working folder."""
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GROUNDLING_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For what modules prepare before their first test."""
    os.environ["GROUNDLING_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Whoever runs the tests in the background of a shell has them ignore SIGINT, and all processes that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power. What must be flushed, and when, the tests of storage and reliability check."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_threads(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tiny models are slower on many threads, and figures to the bit need a fixed number: one, where the tests are
    shared out among processes that would be in each other's way."""
    threads = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
    import torch

    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights that a test draws are the same in any order of the tests."""
    import torch

    torch.default_generator.manual_seed(
        0
    )  # `torch.manual_seed` takes a millisecond more, for devices that are not here


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real one; for a module alone, since its driver keeps an event loop running in this thread."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser is here: none of {', '.join(names)} is on the path")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def prose() -> str:
    """30,000 characters of real English: documentation that every Python ships."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))[:30_000]


@pytest.fixture
def text_file(prose: str, tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(prose, encoding="utf-8", newline="")
    return path


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Settings of a model that trains 40 steps in about a second."""
    return dict(TINY)


@pytest.fixture(scope="session")
def models_to_tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `methods.prepare` writes and trains, once for all processes of the tests. Not to be written to."""
    from filelock import FileLock

    from methods import prepare

    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "models_to_tune"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            patch.setattr("groundling.run.session._finish", lambda *_: None)
            patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
            prepare(folder)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def without_pictures() -> Iterator[Any]:
    """No loss.png and no report.html at the end of a run, which take as long as training a tiny model. Has what draws
    them."""
    from groundling.run import session

    drawn = session._drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_drawn", lambda *_: "")
        yield drawn


@pytest.fixture(scope="module")
def pictures(without_pictures: Any) -> Iterator[None]:
    """For modules that look at loss.png and report.html."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("groundling.run.session._drawn", without_pictures)
        yield


@pytest.fixture
def second_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which only steps take time, a second each."""
    from groundling.training.clock import Clock
    from groundling.training.events import Event, Step
    from groundling.training.trainer import Trainer

    passed, emit = [0.0], Trainer.emit

    def tick(self: Trainer, event: Event) -> None:
        passed[0] += isinstance(event, Step)
        emit(self, event)

    monkeypatch.setattr(Trainer, "emit", tick)
    monkeypatch.setattr(Clock, "elapsed", lambda self: passed[0])
    monkeypatch.setattr(Clock, "typical", lambda self, kind: float(kind == "step"))


@pytest.fixture
def compiler() -> None:
    """What torch.compile needs; where it is not, the test is skipped."""
    from groundling.machine import has_compiler

    if not has_compiler():
        pytest.skip("needs a C++ compiler")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of the given name and content below tmp_path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of the interpreter that runs the tests, whatever kernels the machine has; all its files in tmp."""
    folder = tmp_path / "jupyter" / "kernels" / "groundling-test"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "groundling-test", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    scripts = sysconfig.get_path("scripts")  # where `!groundling` is, also if the environment is not activated
    for name, value in {
        "JUPYTER_PATH": tmp_path / "jupyter",
        "JUPYTER_RUNTIME_DIR": tmp_path / "runtime",
        "IPYTHONDIR": tmp_path / "ipython",
        "GROUNDLING_CACHE": tmp_path / "cache",
        "OMP_NUM_THREADS": 1,
        "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("GROUNDLING_RUNS", raising=False)
    return "groundling-test"
