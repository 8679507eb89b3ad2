"""`groundling selftest`: check on the user's machine that a run survives being killed.

A tiny model is trained without interruption, then again by processes that are killed at random moments (SIGKILL;
TerminateProcess on Windows) and restarted with the same command until the run is finished. Both runs must be equal bit
for bit. Half of the kills hit a random disk operation, half a random phase of training; the phases take turns, so that
short ones are hit as often as long ones.

Python and PyTorch take seconds to start. So a supervisor process imports everything, creates no model or optimizer, and
forks a process for each session. It is a separate process, since forking is safe only before threads are started. Every
sixteenth session is a new interpreter; on Windows, which cannot fork, and on macOS, whose libraries do not allow it,
every session is.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.config import Limits, limits
from groundling.experiments.compare_runs import first_difference, history, tensors
from groundling.experiments.session import KILLED, SETTINGS, import_all, run_session

PHASES = ("start", "steps", "evaluation", "saving", "pruning", "end")
_ONCE = ("start", "end")  # in a session
_FORKS = hasattr(os, "fork") and sys.platform != "darwin"
_FRESH_EVERY = 16
_TIMEOUT = 120.0  # seconds without a message


@dataclass
class SelftestResult:
    """What the selftest did and found."""

    seed: int
    """Decides the kills, though not to the millisecond for those timed by a clock."""
    kills: int = 0
    by_phase: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    """Kills per phase."""
    at_operations: int = 0
    """Kills at a disk operation; the others were timed."""
    half_written: int = 0
    """Kills half-way through writing a file."""
    new_interpreters: int = 0
    """Kills of new interpreters; the others were forks."""
    resumes: int = 0
    runs: int = 0
    """Runs that were killed, continued to the end and compared."""
    tensors: int = 0
    """Compared for each run: arrays of its last checkpoint, logged losses, and batches."""
    losses: int = 0
    batches: int = 0
    seconds: float = 0.0
    difference: str | None = None
    """The first difference or loss. None if there is none."""
    folder: str | None = None
    """The folder of the runs, kept if there is a difference."""


def selftest(
    *, kills: int = 50, seed: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> SelftestResult:
    """Train a tiny model, kill it `kills` times, and compare it bit for bit with one that was not interrupted.

    It runs in a temporary folder, on the CPU with one thread per process, and needs no network. `progress` is called
    with the number of kills done and the total.

    Raises ValueError if `kills` is not positive, and OSError if no temporary folder can be made.
    """
    Limits(1).check("--kills", kills)
    seed = secrets.randbelow(2**32) if seed is None else seed
    limits.SEED.check("--seed", seed)
    try:
        folder, found = tempfile.mkdtemp(prefix="groundling-selftest-"), None
    except FileNotFoundError as error:
        raise OSError(f"{error.strerror}. Choose one with the environment variable TMPDIR.") from None
    program = "import sys; from groundling.experiments.selftest import supervise; supervise(*sys.argv[1:])"
    environment = os.environ | {"GROUNDLING_CACHE": str(Path(folder, "cache")), "OMP_NUM_THREADS": "1"}
    try:
        with subprocess.Popen(
            [sys.executable, "-c", program, folder, str(kills), str(seed)],
            env=environment, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True,
        ) as supervisor:  # fmt: skip
            assert supervisor.stdout is not None
            try:
                for line in map(json.loads, supervisor.stdout):
                    if isinstance(line, int):
                        progress(line, kills)
                    else:
                        found = SelftestResult(**line)
            except BaseException:
                supervisor.terminate()
                raise
    finally:
        if not (found and found.difference):
            shutil.rmtree(folder, ignore_errors=True)
    if found is None:
        raise RuntimeError(f"the selftest's supervisor ended with status {supervisor.returncode}")
    return found


def supervise(folder: str, kills: str, seed: str) -> None:
    """The supervisor process: print the number of kills as it grows, and the result at the end, as JSON lines."""
    found, began = SelftestResult(int(seed)), time.perf_counter()
    found.difference = _Supervisor(Path(folder), int(kills), found).kill_and_compare()
    found.folder = folder if found.difference else None
    found.seconds = time.perf_counter() - began
    print(json.dumps(asdict(found)), flush=True)


@dataclass
class _Session:
    """What a session reported until it ended or was killed; see session.py."""

    new_interpreter: bool
    phase: str = ""
    began: int | None = None
    saved: int = 0
    killing: str = ""
    failed: str = ""
    killed: bool = False
    operations: int = 0
    batches: dict[int, list[int]] = field(default_factory=dict)
    """The windows of the text, by step."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """How long each phase took, each time."""


class _Supervisor:
    def __init__(self, folder: Path, kills: int, found: SelftestResult) -> None:
        self.folder, self.kills, self.found = folder, kills, found
        self.whole = folder / "runs" / "whole"
        self.random = random.Random(found.seed)
        self.aims: list[str] = []
        self.settings = dict(SETTINGS)
        self.sessions = 0
        (folder / "words.txt").write_text(_words(), encoding="utf-8")

    def kill_and_compare(self) -> str | None:
        """Train without interruption, then with kills. Returns the first difference or loss."""
        whole, found = self._session("whole", {}), self.found
        if whole.failed:
            return f"The uninterrupted run failed: {whole.failed}"
        # The precision is chosen by timing, and must be the same in all runs.
        self.settings["dtype"] = storage.read_json(self.whole / "config.json")["machine"]["dtype"]
        found.tensors, found.losses = len(tensors(self.whole)), len(history(self.whole))
        found.batches = len(whole.batches)
        while found.kills < self.kills:
            found.runs += 1
            if difference := self._killed_run(f"killed-{found.runs}", whole):
                return difference
        return None

    def _killed_run(self, name: str, whole: _Session) -> str | None:
        """Train, with kills, until the run is finished. Returns the first difference or loss."""
        run, saved, sessions, place = self.whole.with_name(name), 0, 0, f"{name}, at the start"
        while not (run / "result.json").exists():
            self.found.resumes += sessions > 0
            sessions += 1
            session = self._session(name, self._next_kill(whole) if self.found.kills < self.kills else {})
            if session.failed:
                return f"{place}: {session.failed}"
            if session.began is not None and session.began < saved:
                return f"{place}: step {saved} had been saved, but training continued from step {session.began}."
            for step, windows in session.batches.items():
                if whole.batches.get(step, windows) != windows:  # one past the end is only looked at
                    return f"{place}: the batch of step {step} has different windows of the text."
            saved = max(saved, session.saved)
            if session.killed:
                self._count(session)
                place = f"{name}, after a kill in the phase {session.phase!r}"
        difference = first_difference(run, self.whole)
        if difference is None:
            shutil.rmtree(run)
        return difference and f"{name}: {difference}"

    def _count(self, session: _Session) -> None:
        self.found.kills += 1
        self.found.by_phase[session.phase] += 1
        self.found.at_operations += session.killing != ""
        self.found.half_written += session.killing == "half"
        self.found.new_interpreters += session.new_interpreter
        print(self.found.kills, flush=True)

    def _next_kill(self, whole: _Session) -> dict[str, Any]:
        """The next kill: early enough for several per run, late enough that the run makes progress."""
        if self.found.kills % 2:
            return {"operation": self.random.randint(1, whole.operations // 3), "part": self.random.randrange(6)}
        self.aims = self.aims or self.random.sample(PHASES, len(PHASES))  # the phases take turns
        phase = self.aims.pop()
        delay = self.random.random() * statistics.mean(whole.seconds[phase])
        return {"phase": phase, "times": 1 if phase in _ONCE else self.random.randint(1, 3), "delay": delay}

    def _session(self, name: str, kill: dict[str, Any]) -> _Session:
        """Run one process to its end."""
        session = _Session(new_interpreter=not _FORKS or self.sessions % _FRESH_EVERY == 0)
        self.sessions += 1
        context: Any = multiprocessing.get_context("spawn" if session.new_interpreter else "fork")
        pipe, theirs = context.Pipe(duplex=False)
        arguments = theirs, self.folder, name, self.settings, kill
        process = context.Process(target=run_session, args=arguments, daemon=True)
        process.start()
        theirs.close()  # or the pipe would stay open after the process ended
        if _FORKS:
            import_all()  # while the first session, a new interpreter, imports them too
        since = time.perf_counter()
        with suppress(EOFError, ConnectionError), pipe:  # what it sent before it was killed is still read
            while pipe.poll(_TIMEOUT):
                what, value = json.loads(pipe.recv_bytes())
                if what == "phase":
                    session.seconds[session.phase].append(time.perf_counter() - since)
                    since = time.perf_counter()
                if what == "batch":
                    session.batches.update([value])
                else:
                    setattr(session, what, value)
            session.failed = f"there was no message for {_TIMEOUT:.0f} s."
            process.kill()
        process.join()
        session.seconds[session.phase].append(time.perf_counter() - since)
        session.killed = bool(kill) and process.exitcode == KILLED and not session.failed
        if process.exitcode != 0 and not session.killed and not session.failed:
            session.failed = f"the process exited with status {process.exitcode}."
        return session


def _words() -> str:
    """3,000 characters of made-up words, always the same."""
    drawn = random.Random(0)
    words = ["".join(drawn.choices("etaoinshrdlu", k=drawn.randint(2, 8))) for _ in range(200)]
    return " ".join(drawn.choices(words, k=700))[:3000]
