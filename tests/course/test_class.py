"""What a teacher needs: a check of each machine, and the course as a folder that installs without a network."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from groundling.__main__ import main
from groundling.course import bundle as bundling
from groundling.course.bundle import bundle
from groundling.course.chapter import chapters
from groundling.data import sources


def test_a_machine_is_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--class"])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "works (loss" in out
    assert all(chapter.title in out for chapter in chapters().values())
    monkeypatch.setattr("groundling.course.preflight.DISK", 1e18)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--class"])
    assert ended.value.code == 1
    assert "delete some files" in capsys.readouterr().out


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch, text_file: Path) -> bytes:
    """The course's text, where nothing can be downloaded."""
    monkeypatch.setitem(
        sources._NAMED, "shakespeare", lambda: [sources.file_at(text_file, "shakespeare", "shakespeare")]
    )
    return text_file.read_bytes()


def test_a_bundle_has_chapters_text_runs_and_hashes(
    text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wheels(folder: Path, own: Path, system: str, python: str, torch_index: str | None) -> None:
        folder.mkdir(parents=True)
        (folder / "groundling-0.1.0-py3-none-any.whl").write_bytes(system.encode())

    monkeypatch.setattr(bundling, "_own_wheel", lambda folder: folder)
    monkeypatch.setattr(bundling, "_wheels", wheels)
    monkeypatch.setattr(bundling, "find_spec", lambda name: True)
    (tmp_path / "runs" / "ch4").mkdir(parents=True)
    (tmp_path / "runs" / "ch4" / "config.json").write_text("{}")
    made = bundle(tmp_path / "stick", ["linux", "windows"], "3.12", runs=tmp_path / "runs")
    assert (made / "tinyshakespeare.txt").read_bytes() == text
    assert {path.name for path in (made / "chapters").glob("*.html")} == {f"chapter_{n}.html" for n in chapters()}
    start = (made / "START-HERE.txt").read_text()
    assert "wheels/linux" in start
    assert "py -m venv" in start
    assert "macOS" not in start
    named = dict(reversed(line.split("  ")) for line in (made / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert named.keys() == files - {"SHA256SUMS", "manifest.json"}
    assert all(hashlib.sha256((made / name).read_bytes()).hexdigest() == value for name, value in named.items())
    with pytest.raises(FileExistsError, match="never overwritten"):
        bundle(tmp_path / "stick", ["linux"], "3.12")


def test_what_a_bundle_lacks_is_one_sentence(text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundling, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "groundling\[bundle\]"'):
        bundle(tmp_path / "stick", ["linux"], "3.12")
    monkeypatch.setattr(bundling, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match=r"--for amiga is unknown\. Use linux, macos, windows\."):
        bundle(tmp_path / "stick", ["amiga"], "3.12")
    with pytest.raises(ValueError, match="pip nonsense failed: ERROR: unknown command"):
        bundling._pip("nonsense")
    assert not (tmp_path / "stick").exists()


@pytest.mark.slow
def test_a_bundle_installs_and_runs_without_a_network(text: bytes, tmp_path: Path) -> None:
    """Needs uv, an index or a folder with wheels, and the right to take the network away from a process."""
    pytest.importorskip("uv")
    alone = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("the network cannot be taken away here")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    places = os.environ.get("PIP_FIND_LINKS")
    made = bundle(tmp_path / "stick", ["linux"], python, torch_index=places)
    lines = (made / "START-HERE.txt").read_text().split("Linux:")[1].split("To read")[0].strip().splitlines()
    script = "set -e\n" + "\n".join(line.strip() for line in lines) + "\nvenv/bin/groundling course check 1 || true\n"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [*alone, "bash", "-c", script], cwd=made, env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    assert "You have not written it yet." in done.stdout
