"""Places where nothing can be written: the sentence names the cause and what chooses another place."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from groundling import storage
from groundling.run.lock import lock


def refusing(error: int, name: str, below: Path) -> storage.Disk:
    """A disk on which one operation fails below a folder."""

    class Refusing(storage.Disk):
        pass

    def operation(self: Refusing, path: Path, *arguments: Any) -> None:
        if path.is_relative_to(below):
            raise OSError(error, os.strerror(error), str(path))
        getattr(storage.Disk, name)(self, path, *arguments)

    setattr(Refusing, name, operation)
    return Refusing()


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("GROUNDLING_CACHE", "~/my cache")
    assert storage.cache_folder() == tmp_path / "my cache"


def test_a_cache_from_the_working_folder_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDLING_CACHE", "cache")
    assert storage.cache_folder() == tmp_path / "cache"


@pytest.mark.skipif(os.name == "nt", reason="HOME is not the home folder")
def test_without_a_home_folder_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "~")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # a user without an account
    for given, shown in (("~/cache", "~/cache"), ("", "~/.cache")):
        monkeypatch.setenv("GROUNDLING_CACHE", given)
        with pytest.raises(OSError, match=rf"^The cache folder {shown} is in your home folder, which is not known: "):
            storage.cache_folder()


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    storage.check_writable(tmp_path / "a" / "b", "--out", pytest.fail)
    storage.check_writable(tmp_path, "--out", pytest.fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError) as refused:
        storage.check_writable(tmp_path / place, "--out")
    assert str(refused.value) == (
        f"{tmp_path / place} cannot be written: {tmp_path / 'file'} is a file, not a folder. Choose another place with "
        "--out."
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_a_dead_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match=r"link is a link to .*gone, which does not exist\. Choose another place"):
        storage.check_writable(tmp_path / "link" / "runs", "--out")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot be written: the path or a name in it is too long\. Choose another"):
        storage.check_writable(tmp_path / ("x" * 300), "--out")


@pytest.mark.parametrize("name", ["make_folder", "rename"])
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errno.EACCES, "you have no permission to write in {}. Choose another place with --to."),
        (errno.EPERM, "the disk of {} does not permit it. Choose another place with --to."),
        (errno.EXDEV, "the disk of {} cannot rename files. Choose another place with --to."),
        (errno.EROFS, "read-only file system. Check that the disk of {} is healthy and writable. Choose another place "
                      "with --to."),
    ],
)  # fmt: skip
def test_the_cause_is_named_at_once(
    name: str, error: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "disk", refusing(error, name, tmp_path))
    began = time.perf_counter()
    with pytest.raises(OSError) as refused:
        storage.check_writable(tmp_path, "--to")
    assert str(refused.value) == f"{tmp_path} cannot be written: {sentence.format(tmp_path)}"
    assert time.perf_counter() - began < 1 and list(tmp_path.iterdir()) == []


def test_what_chooses_the_cache_is_named_wherever_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = storage.cache_folder()
    monkeypatch.setattr(storage, "disk", refusing(errno.EACCES, "make_folder", cache.parent))
    for path, setting in ((cache / "x", "the environment variable GROUNDLING_CACHE"), (tmp_path / "runs", "--out or")):
        with pytest.raises(OSError, match=f"Choose another place with {setting}"):
            storage.make_folder(path)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_cannot_flush_folders_is_used_and_said(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def flush(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(error, os.strerror(error))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flush)
    said: list[str] = []
    storage.check_writable(tmp_path / "runs", "--out", said.append)
    storage.make_folder(tmp_path / "runs")
    storage.write_file(tmp_path / "runs" / "file", "content")
    with storage.new_folder(tmp_path / "runs" / "new") as folder:
        (folder / "x").write_text("x")
    storage.verify(tmp_path / "runs" / "new")
    if os.name != "nt":
        assert [sentence.partition(" (")[0] for sentence in said] == [
            f"The disk of {tmp_path / 'runs'} cannot flush a folder"
        ]


def test_a_file_that_cannot_be_flushed_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "disk", refusing(errno.EINVAL, "sync", tmp_path))
    with pytest.raises(OSError, match="cannot be written"):
        storage.write_file(tmp_path / "file", "content")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_renamed_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container's overlay, a folder of the image."""
    with storage.new_folder(tmp_path / "old") as folder:
        (folder / "x").write_text("x")
    monkeypatch.setattr(storage, "disk", refusing(errno.EXDEV, "rename", tmp_path))
    storage.remove_folder(tmp_path / "old")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_disk_without_locks_is_used_and_said(no_locks: None, tmp_path: Path) -> None:
    said: list[str] = []
    storage.check_writable(tmp_path, "--out", said.append)
    assert said == [f"The disk of {tmp_path} cannot lock files. Do not train the same run from two machines."]
    with storage.locked(tmp_path / ".lock") as has_lock:
        assert not has_lock


def test_without_locks_a_living_holder_still_has_the_run(no_locks: None, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other, ExitStack() as stack:
        lock(tmp_path, stack)
        holder = storage.read_json(tmp_path / "holder.json")
        storage.write_json(tmp_path / "holder.json", holder | {"pid": other.pid})
        with pytest.raises(ValueError, match=rf"another process \(pid {other.pid} on .* If it is gone, delete"):
            lock(tmp_path, stack)
        other.communicate(b"\n")
        lock(tmp_path, stack)  # the holder was killed


def test_a_lock_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is a file, not a folder"), storage.locked(tmp_path / "file" / ".lock"):
        pytest.fail("it has no place")


def test_an_output_file_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.output_file("--to", "x.html") == Path("x.html") and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(storage, "disk", refusing(errno.EACCES, "make_folder", tmp_path))
    with pytest.raises(OSError, match=r"no permission to write in .*\. Choose another place with --to\.$"):
        storage.output_file("--to", "x.html")


def test_compiled_code_goes_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    from numba.core import caching

    from groundling.acceleration import numba_kernels

    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert numba_kernels._can_cache() and numba.config.CACHE_DIR == ""
    chosen = [each for each in caching.CacheImpl._locator_classes if "UserProvided" in each.__name__]
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", chosen)  # as if all other places were read-only
    assert numba_kernels._can_cache() and str(storage.cache_folder() / "numba") == numba.config.CACHE_DIR
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert not numba_kernels._can_cache()


def test_matplotlib_is_quiet_without_a_folder_of_its_own(write: Callable[..., Path]) -> None:
    program = (
        "from groundling.reporting.plot import plot_curves; from pathlib import Path; "
        "plot_curves({'a': [{'event': 'step', 'step': 1, 'loss': 2.0}]}, Path('curve'))"
    )
    environment = os.environ | {"MPLCONFIGDIR": str(write("file", "") / "below")}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stderr == "" and Path("curve").read_bytes().startswith(b"\x89PNG")
