"""`groundling selftest`: whether a run survives being killed, on the user's own machine.

A tiny model is trained without interruption, then again by processes that are killed at random moments (SIGKILL;
TerminateProcess on Windows) and followed by others, with the same command, until the run has come to its end. The two
must be equal to the bit. Half of the kills strike at a random operation on the disk, half in a random phase of
training; the phases take turns, so that each has its share however short it is.

Python and PyTorch take seconds to start. So one process, the conductor, imports everything and does nothing else, and
each session is a fork of it: nothing of a model, an optimizer or a text is there before. It is a process of its own,
since forking is safe only where no threads were started. Each sixteenth session is a new interpreter all the same; on
Windows, which cannot fork, and on macOS, whose libraries do not bear it, all of them are. The next one starts while
the last one is still at work.
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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.experiments.compare_runs import first_difference, history, tensors
from groundling.experiments.session import KILLED, SETTINGS, import_all, run_session

PHASES = ("start", "steps", "evaluation", "saving", "pruning", "end")
_ONCE = ("start", "end")  # in a session
_FORKS = hasattr(os, "fork") and sys.platform != "darwin"
_FRESH_EVERY = 16
_HANGS = 120.0  # seconds without a word


@dataclass
class Found:
    """What came of it."""

    seed: int
    """Decides the kills, though not the last millisecond of those that strike by time."""
    kills: int = 0
    struck: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    """Kills by the phase in which they fell."""
    at_operations: int = 0
    """Kills at an operation on the disk; the others struck by time."""
    half_written: int = 0
    """Kills half-way through the writing of a file."""
    fresh: int = 0
    """Kills of new interpreters; the others were forks."""
    resumes: int = 0
    runs: int = 0
    """Runs that were killed, continued to their end and compared."""
    tensors: int = 0
    """Compared of each run: the values of its last checkpoint, its logged losses, and its batches."""
    losses: int = 0
    batches: int = 0
    seconds: float = 0.0
    difference: str | None = None
    """The first thing that differs or was lost; None if nothing was."""
    folder: str | None = None
    """Where the runs are kept, if something differs."""


def selftest(
    *, kills: int = 50, seed: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> Found:
    """Train a tiny model, kill it `kills` times, and compare it with one that was left alone, bit for bit.

    It takes place in a temporary folder, on the CPU, one thread a process, and needs no network. `progress` is told
    how many kills are done, and their number.

    Raises ValueError if `kills` is not positive, OSError if there can be no temporary folder.
    """
    if kills < 1:
        raise ValueError(f"--kills must be 1 or more, and it is {kills}.")
    seed = secrets.randbelow(2**32) if seed is None else seed
    folder, found = tempfile.mkdtemp(prefix="groundling-selftest-"), None
    program = "import sys; from groundling.experiments.selftest import conduct; conduct(*sys.argv[1:])"
    environment = os.environ | {"GROUNDLING_CACHE": str(Path(folder, "cache")), "OMP_NUM_THREADS": "1"}
    try:
        with subprocess.Popen(
            [sys.executable, "-c", program, folder, str(kills), str(seed)],
            env=environment, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True,
        ) as conductor:  # fmt: skip
            assert conductor.stdout is not None
            try:
                for line in map(json.loads, conductor.stdout):
                    if isinstance(line, int):
                        progress(line, kills)
                    else:
                        found = Found(**line)
            except BaseException:
                conductor.terminate()
                raise
    finally:
        if not (found and found.difference):
            shutil.rmtree(folder, ignore_errors=True)
    if found is None:
        raise RuntimeError(f"the conductor of the selftest ended with status {conductor.returncode}")
    return found


def conduct(folder: str, kills: str, seed: str) -> None:
    """What the conductor does: print the number of kills as it grows, and at the end what was found, as JSON."""
    found, began = Found(int(seed)), time.perf_counter()
    found.difference = _Conductor(Path(folder), int(kills), found).first_difference()
    found.folder = folder if found.difference else None
    found.seconds = time.perf_counter() - began
    print(json.dumps(asdict(found)), flush=True)


@dataclass
class _Session:
    """What a session told until it ended or was killed: see session.py."""

    fresh: bool
    phase: str = ""
    began: int | None = None
    saved: int = 0
    striking: str = ""
    failed: str = ""
    killed: bool = False
    operations: int = 0
    batches: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """How long each phase was, each time."""

    def note(self, word: str, value: str) -> None:
        if word == "batch":
            name, _, places = value.partition(" ")
            self.batches[name] = places
        else:
            assert word in ("phase", "operation", "began", "saved", "striking", "failed")
            number = word in ("operation", "began", "saved")
            setattr(self, "operations" if word == "operation" else word, int(value) if number else value)


class _Conductor:
    def __init__(self, folder: Path, kills: int, found: Found) -> None:
        self.runs, self.kills, self.found = folder / "runs", kills, found
        self.random = random.Random(found.seed)
        self.aims: list[str] = []
        self.settings = dict(SETTINGS)
        self.started = 0
        (folder / "words.txt").write_text(_words(), encoding="utf-8")
        self.ready = self._start()  # a new interpreter, which imports at the same time
        if _FORKS:
            import_all()

    def first_difference(self) -> str | None:
        whole, found = self._session("whole", {}), self.found
        if whole.failed:
            return f"The run that was left alone failed: {whole.failed}"
        # What is chosen by timing must not be chosen anew after a kill.
        self.settings["dtype"] = storage.read_json(self.runs / "whole" / "config.json")["machine"]["dtype"]
        found.tensors, found.losses = len(tensors(self.runs / "whole")), len(history(self.runs / "whole"))
        found.batches = len(whole.batches)
        difference = None
        while found.kills < self.kills and difference is None:
            found.runs += 1
            difference = self._killed_run(f"killed-{found.runs}", whole)
        return difference

    def _killed_run(self, name: str, whole: _Session) -> str | None:
        """Train, with kills, until the run has come to its end. Returns what differs or was lost first."""
        folder, saved, sessions, place = self.runs / name, 0, 0, f"{name}, at its beginning"
        while not (folder / "result.json").exists():
            self.found.resumes += sessions > 0
            sessions += 1
            strike = self._strike(whole) if self.found.kills < self.kills else {}
            session = self._session(name, strike)
            if session.failed:
                return f"{place}: {session.failed}"
            if session.began is not None and session.began < saved:
                return f"{place}: step {saved} had been saved, and training went on from step {session.began}."
            for batch, places in session.batches.items():
                if whole.batches.get(batch, places) != places:  # one that is only looked at, after the end, is no other
                    return f"{place}: batch {batch} (step and micro-step) has other windows of the text."
            saved = max(saved, session.saved)
            if session.killed:
                self._count(session)
                place = f"{name}, after a kill in the phase {session.phase!r}"
        difference = first_difference(folder, self.runs / "whole")
        if difference is None:
            shutil.rmtree(folder)
        return difference and f"{name}: {difference}"

    def _count(self, session: _Session) -> None:
        self.found.kills += 1
        self.found.struck[session.phase] += 1
        self.found.at_operations += session.striking != ""
        self.found.half_written += session.striking == "half"
        self.found.fresh += session.fresh
        print(self.found.kills, flush=True)

    def _strike(self, whole: _Session) -> dict[str, Any]:
        """Where the next kill is to fall: so soon that a run sees several, so late that it comes forward."""
        if self.found.kills % 2:
            return {"operation": self.random.randint(1, whole.operations // 3), "part": self.random.randrange(6)}
        self.aims = self.aims or self.random.sample(PHASES, len(PHASES))  # each phase has its turn
        phase = self.aims.pop()
        delay = self.random.random() * statistics.mean(whole.seconds[phase])
        return {"phase": phase, "times": 1 if phase in _ONCE else self.random.randint(1, 3), "delay": delay}

    def _start(self) -> tuple[_Session, Any, Connection]:
        """A process that waits for its orders."""
        fresh = not _FORKS or self.started % _FRESH_EVERY == 0
        self.started += 1
        context: Any = multiprocessing.get_context("spawn" if fresh else "fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=run_session, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # or its death would not close the pipe
        return _Session(fresh), process, ours

    def _session(self, name: str, strike: dict[str, Any]) -> _Session:
        """One process from its orders to its end."""
        session, process, pipe = self.ready
        order = {"folder": str(self.runs.parent), "name": name, "settings": self.settings, "strike": strike}
        pipe.send_bytes(json.dumps(order).encode())
        self.ready = self._start()
        since = time.perf_counter()
        with suppress(EOFError, ConnectionError), pipe:  # what it told before it died is read to the end
            while pipe.poll(_HANGS):
                word, _, value = pipe.recv_bytes().decode().partition(" ")
                if word == "phase":
                    session.seconds[session.phase].append(time.perf_counter() - since)
                    since = time.perf_counter()
                session.note(word, value)
            session.failed = f"there was no sign of life for {_HANGS:.0f} s."
            process.kill()
        process.join()
        session.seconds[session.phase].append(time.perf_counter() - since)
        session.killed = bool(strike) and process.exitcode == KILLED and not session.failed
        if process.exitcode != 0 and not session.killed and not session.failed:
            session.failed = f"the process ended by itself with status {process.exitcode}."
        return session


def _words() -> str:
    """3,000 characters of words that do not exist, the same each time."""
    drawn = random.Random(0)
    words = ["".join(drawn.choices("etaoinshrdlu", k=drawn.randint(2, 8))) for _ in range(200)]
    return " ".join(drawn.choices(words, k=700))[:3000]
