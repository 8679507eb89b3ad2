"""A disk that is full, read-only, over its quota or failing: a sentence, and whatever was saved is as it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import STEPS, outcome, train
from disks import Failing, Logging

from groundling import storage
from groundling.training.checkpoints import Checkpoints

FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.retry, "WAITS", (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """What an undisturbed training comes to, and how many operations it has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", "")
        patch.setattr(storage, "disk", disk := Logging())
        return train(tmp_path_factory.mktemp("undisturbed")), disk.count


def whole(run: Path) -> int:
    """The number of checkpoints, none of which is in half."""
    checkpoints = Checkpoints(run / "checkpoints")
    for step in checkpoints.steps():
        checkpoints.verify(checkpoints.path(step))
    return len(checkpoints.steps())


def stays(error: int, at: int, expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From operation `at` on, every one fails; then the disk is well again."""
    monkeypatch.setattr(storage, "disk", disk := Failing(error, at, times=10**6))
    refused = None
    try:
        train(folder)
    except OSError as fault:
        refused = fault
    if refused is None:
        assert set(disk.failed) == {"delete"}  # all was saved, and something could not be pruned
    elif refused.strerror is None:  # a sentence of ours; the system's own has no more than its reason and a path
        assert os.strerror(error).lower() in str(refused) and "What was saved before is intact" in str(refused)
        assert ("It needs" in str(refused)) == ("Free some space" in str(refused)) == (error in FAULTS[:2])
    assert refused is None or refused.errno == error
    whole(folder / "run")
    monkeypatch.setattr(storage, "disk", storage.Disk())
    assert train(folder) == expected, at


def passes(error: int, at: int, expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operation `at` fails, once."""
    monkeypatch.setattr(storage, "disk", Failing(error, at))
    try:
        assert train(folder) == expected, at
    except OSError:
        assert not (folder / "run" / "checkpoints").exists()  # before training, nothing is lost by ending


@pytest.mark.parametrize("error", FAULTS, ids=errno.errorcode.get)
def test_a_fault_that_stays_is_a_sentence_and_the_same_command_goes_on(
    error: int, undisturbed: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, count = undisturbed
    for at in range(5 + error % 7, count, 43):
        stays(error, at, expected, tmp_path / str(at), monkeypatch)


@pytest.mark.parametrize("error", FAULTS[:3], ids=errno.errorcode.get)
def test_a_fault_that_passes_is_waited_for(
    error: int, undisturbed: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, count = undisturbed
    for at in range(3 + error % 7, count, 43):
        passes(error, at, expected, tmp_path / str(at), monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_fault_at_every_operation(
    undisturbed: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, count = undisturbed
    for at in range(1, count + 1):
        for error in FAULTS:
            stays(error, at, expected, tmp_path / f"stays-{error}-{at}", monkeypatch)
        for error in FAULTS[:3]:
            passes(error, at, expected, tmp_path / f"passes-{error}-{at}", monkeypatch)


def test_a_save_is_tried_four_times_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fail() -> None:
        tried.append(1)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match=r"cannot be written: input/output error\. Check that the disk of"):
        storage.retry_io(tmp_path / "x", 10, fail)
    assert len(tried) == 4


def test_a_fault_within_a_save_is_said_once_after_four_tries(tmp_path: Path) -> None:
    tried = []

    def fail() -> None:
        tried.append(1)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError) as refused:
        storage.retry_io(tmp_path / "x", 10, lambda: storage.retry_io(tmp_path / "x" / "y", 10, fail))
    assert len(tried) == 4 and str(refused.value).count("cannot be written") == 1


def test_what_cannot_pass_is_not_waited_for(tmp_path: Path) -> None:
    tried = []

    def fail() -> None:
        tried.append(1)
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(OSError, match="read-only file system"):
        storage.retry_io(tmp_path / "x", 10, fail)
    assert len(tried) == 1


def test_a_disk_that_gives_back_other_bytes_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It turns a bit of the third checkpoint's weights when they are forced to it: read back, they are not the same."""

    class Lying(storage.Disk):
        def rename(self, old: Path, new: Path) -> None:
            super().rename(old, new)
            if new.name == f"step-{STEPS:06d}":
                file = new / "model.safetensors"
                file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))

    monkeypatch.setattr(storage, "disk", Lying())
    with pytest.raises(OSError, match="the disk returned different data than was written") as refused:
        train(tmp_path / "Run")
    checkpoints = Checkpoints(tmp_path / "Run" / "run" / "checkpoints")
    assert str(refused.value).count(f"{checkpoints.folder}/step-") == 2  # what cannot be written, and why
    for step in (STEPS - 2, STEPS - 1):
        checkpoints.verify(checkpoints.path(step))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = sys.platform == "linux" and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path, undisturbed: tuple[str, int]) -> None:
    """A real one: it fills up, training says so and ends, and with room again it goes on to the same bits."""
    (small_disk / "filler").write_bytes(bytes(190_000))
    with pytest.raises(OSError, match=r"no space left on device. It needs .* are free. Free some space on the disk of"):
        train(small_disk)
    assert (whole(small_disk / "run")) >= 1
    (small_disk / "filler").unlink()
    assert train(small_disk) == undisturbed[0] == outcome(small_disk / "run")


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from bench import train
from groundling import storage
storage.retry.WAITS = ()
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
train(Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs resource limits")
def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    run = subprocess.run([sys.executable, "-c", LIMITED, here, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 1 and "cannot be written: file too large. It needs" in run.stderr
