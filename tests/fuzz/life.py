"""The life of a run as Hypothesis makes it up: trained, killed, its disk full, its files damaged, deleted, resumed.

    python tests/fuzz/life.py LIVES EVENTS

Each life has so many events at most. An oracle beside it knows every checkpoint byte by byte, so that the newest whole
one is known without the manifest, and what an undisturbed training ends with.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).parents[1] / "reliability"))
import bench
from disks import Failing, Killing

from groundling import storage
from groundling.storage import retry
from groundling.training.checkpoints import Checkpoints

bench.STEPS = 6
retry.WAITS = ()  # a disk that is full stays full
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
OPERATIONS, ANY = st.integers(1, 25) | st.integers(1, 140), st.integers(0, 10**6)
HAPPENED: Counter[str] = Counter()


class Life(RuleBasedStateMachine):
    """Rules are events. `known` has the content of each checkpoint as it was when it was whole."""

    expected = ""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.known: dict[int, dict[str, bytes]] = {}
        self.checkpoints = Checkpoints(self.folder / "run" / "checkpoints")

    def teardown(self) -> None:
        shutil.rmtree(self.folder)
        HAPPENED["lives"] += 1

    def session(self, disk: storage.Disk) -> tuple[int, str]:
        """The same command once more; what is whole afterwards is no older than before."""
        before = max(self.whole(), default=0)
        signal, answer = bench.forked(lambda: bench.train_on(self.folder, disk))
        for step in self.checkpoints.steps():
            try:
                self.checkpoints.verify(self.checkpoints.path(step))
            except ValueError:
                continue
            if step not in self.whole():
                self.known[step] = self.content(step)
        assert max(self.whole(), default=0) >= before, "a newer checkpoint was lost"
        return signal, answer

    def content(self, step: int) -> dict[str, bytes]:
        path = self.checkpoints.path(step)
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())} if path.is_dir() else {}

    def whole(self) -> list[int]:
        return [step for step, content in self.known.items() if self.content(step) == content]

    @rule(at=OPERATIONS, midway=st.booleans())
    def train_and_kill(self, at: int, midway: bool) -> None:
        signal, answer = self.session(Killing(at, midway))
        assert signal == 9 or answer == self.expected, answer
        HAPPENED["killed" if signal else "finished"] += 1

    @rule(at=OPERATIONS, error=st.sampled_from([errno.ENOSPC, errno.EIO, errno.EROFS]))
    def fill_the_disk(self, at: int, error: int) -> None:
        _, answer = self.session(Failing(error, at, times=10**6))
        last = answer.strip().splitlines()[-1]
        assert answer == self.expected or last.startswith("OSError: "), answer
        HAPPENED["finished" if answer == self.expected else "faults of the disk"] += 1

    @rule(which=ANY, place=ANY, bit=st.integers(0, 7), kind=st.sampled_from(["flip", "cut", "empty", "delete"]))
    def damage(self, which: int, place: int, bit: int, kind: str) -> None:
        places = (self.folder / "run" / "checkpoints", self.folder / "cache")
        found = (file for place in places for file in place.rglob("*"))
        files = sorted(file for file in found if file.is_file() and file.suffix != ".lock")
        if not files:
            return
        file = files[which % len(files)]
        content = file.read_bytes()
        at = place % max(len(content), 1)
        if kind == "delete":
            file.unlink()
        elif kind == "flip" and content:
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        else:
            file.write_bytes(content[:at] if kind == "cut" else b"")
        HAPPENED["damaged"] += 1

    @rule(which=ANY, at=st.integers(1, 12))
    def delete(self, which: int, at: int) -> None:
        """A checkpoint is deleted, and the process killed on the way, perhaps."""
        if not (steps := self.checkpoints.steps()):
            return
        step = steps[which % len(steps)]
        path, before = self.checkpoints.path(step), self.content(step)

        def delete() -> None:
            storage.disk = Killing(at)
            storage.remove_folder(path)

        bench.forked(delete)
        assert self.content(step) in ({}, before), "half of a checkpoint has its name"
        HAPPENED["deleted"] += 1

    @rule()
    def resume(self) -> None:
        signal, answer = self.session(storage.Disk())
        assert (signal, answer) == (0, self.expected), answer
        HAPPENED["resumed to the end"] += 1

    @invariant()
    def the_newest_whole_one_is_found(self) -> None:
        newest = bench.newest_of(self.checkpoints)
        step = max(self.whole(), default=None)
        assert newest == (None if step is None else self.checkpoints.path(step)), f"{newest} is not step {step}"


def main(lives: int, events: int) -> None:
    """Live, and print what happened how often; a contradiction ends it with the life that led there."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        Life.expected = bench.train(Path(folder) / "undisturbed")
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=lives, stateful_step_count=events, deadline=None, database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
    print(json.dumps(HAPPENED))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
