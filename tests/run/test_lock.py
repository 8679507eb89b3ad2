"""One process a run: exactly one wins, the others name it, and a killed one leaves nothing in the way."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from groundling import storage
from groundling.run.lock import check_places, lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="starters are forked")
STARTERS = 8


def race(folder: Path) -> tuple[dict[int, str], list[int]]:
    """What came of eight that start at once, and their numbers; the winner still holds the lock."""
    (gate, open_gate), (answers, told) = os.pipe(), os.pipe()
    started = []
    for _ in range(STARTERS):
        pid = os.fork()
        if pid == 0:
            os.close(open_gate)
            os.close(answers)
            try:
                os.read(gate, 1)  # ends when the parent closes its side
                try_to_lock(folder, told)
            finally:
                os._exit(0)
        started.append(pid)
    os.close(told)
    os.close(open_gate)
    os.close(gate)
    content = b""
    while content.count(b"\n") < STARTERS:
        content += os.read(answers, 65536)
    os.close(answers)
    lines = [line.split(" ", 1) for line in content.decode().splitlines()]
    return {int(pid): word for pid, word in lines}, started


def try_to_lock(folder: Path, told: int) -> None:
    with ExitStack() as stack:
        try:
            lock(folder, stack)
            word = "won"
        except ValueError as error:
            word = str(error)
        os.write(told, f"{os.getpid()} {word}\n".encode())
        if word == "won":
            time.sleep(60)  # until it is killed


def races(folder: Path, times: int) -> None:
    """Again and again in one folder: each winner is killed, and the next eight find no lock of its."""
    for _ in range(times):
        answers, started = race(folder)
        winners = [pid for pid, word in answers.items() if word == "won"]
        try:
            assert len(winners) == 1
            said = rf"The run {folder.name} is being trained by another process \(pid {winners[0]} on "
            said += rf"{re.escape(platform.node())}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d.*\. Wait for it or stop it"
            for pid, word in answers.items():
                assert pid in winners or re.match(said, word), word
        finally:
            for pid in started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        with ExitStack() as stack:
            lock(folder, stack)  # at once: no stale lock
            assert (folder / "holder.json").exists()
        assert not (folder / "holder.json").exists()


def test_of_eight_that_start_at_once_exactly_one_wins(tmp_path: Path) -> None:
    races(tmp_path, 6)


@pytest.mark.slow
def test_of_eight_that_start_at_once_exactly_one_wins_a_hundred_times(tmp_path: Path) -> None:
    races(tmp_path, 100)


def test_both_places_are_checked_and_what_their_disk_lacks_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoFolders(storage.Disk):
        def sync(self, path: Path) -> None:
            if path.is_dir():
                raise OSError(errno.EINVAL, "Invalid argument")
            super().sync(path)

    monkeypatch.setattr(storage, "disk", NoFolders())
    said: list[str] = []
    storage.make_folder(storage.cache_folder())
    check_places(tmp_path / "runs", said.append)
    assert len(said) == 1 and said[0].startswith(f"The disk of {tmp_path / 'runs'} cannot flush a folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"is a file, not a folder\. Choose another place with --out or GROUND"):
        check_places(tmp_path / "file", said.append)
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="Choose another place with the environment variable GROUNDLING_CACHE"):
        check_places(tmp_path / "runs", said.append)
