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
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).parents[1] / "reliability"))
import bench
from disks import Failing, Killing

from groundling import storage
from groundling.storage import faults
from groundling.training.checkpoint import Checkpoints

bench.STEPS = 6
faults.WAITS = ()  # a disk that is full stays full
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
OPERATIONS = st.integers(1, 140)
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

    @precondition(lambda self: any(self.folder.rglob("*.*")))
    @rule(data=st.data(), kind=st.sampled_from(["flip", "cut", "empty", "delete"]))
    def damage(self, data: st.DataObject, kind: str) -> None:
        places = (self.folder / "run" / "checkpoints", self.folder / "cache")
        files = sorted(
            file for place in places for file in place.rglob("*") if file.is_file() and file.suffix != ".lock"
        )
        if not files:
            return
        file = data.draw(st.sampled_from(files), label="file")
        content = file.read_bytes()
        place = data.draw(st.integers(0, max(len(content) - 1, 0)), label="place")
        if kind == "delete":
            file.unlink()
        elif kind == "flip" and content:
            bit = 1 << data.draw(st.integers(0, 7), label="bit")
            file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        else:
            file.write_bytes(content[:place] if kind == "cut" else b"")
        HAPPENED["damaged"] += 1

    @precondition(lambda self: self.checkpoints.steps())
    @rule(data=st.data(), at=st.integers(1, 12))
    def thin_out(self, data: st.DataObject, at: int) -> None:
        """A checkpoint is deleted, and the process killed on the way, perhaps."""
        step = data.draw(st.sampled_from(self.checkpoints.steps()), label="step")
        path = self.checkpoints.path(step)

        def delete() -> None:
            storage.disk = Killing(at)
            storage.remove_folder(path)

        bench.forked(delete)
        assert not path.exists() or self.content(step) == self.known.get(step, self.content(step)), "half is left"
        HAPPENED["pruned"] += 1

    @rule()
    def resume(self) -> None:
        signal, answer = self.session(storage.Disk())
        assert (signal, answer) == (0, self.expected), answer
        HAPPENED["resumed to the end"] += 1

    @invariant()
    def the_newest_whole_one_is_found(self) -> None:
        newest = self.checkpoints.newest(lambda sentence: None)
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
