"""The course as a folder for a room without a network: wheels, text, chapters and finished runs.

`uv` decides which versions a system other than this one needs, since pip reads the markers of requirements for the
system that it runs on. pip, which has no such question left, downloads them.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from urllib.request import url2pathname

from groundling import storage
from groundling.course.chapter import chapters
from groundling.course.notebook import notebook
from groundling.course.page import page
from groundling.course.program import program

# What uv calls each system, and the tags of wheels for it.
SYSTEMS = {
    "linux": (
        "x86_64-manylinux_2_28",
        [*(f"manylinux_2_{k}_x86_64" for k in range(28, 4, -1)), "manylinux2014_x86_64"],
    ),
    "macos": ("aarch64-apple-darwin", ["macosx_14_0_arm64"]),
    "windows": ("x86_64-pc-windows-msvc", ["win_amd64"]),
}
_TEXT = "tinyshakespeare.txt"


def bundle(
    out: Path,
    systems: Sequence[str],
    python: str,
    torch_index: str | None = None,
    runs: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the folder `out` with all that a class needs, complete or not at all.

    `torch_index` is the address of an index, or a folder, with builds of PyTorch for CPUs. `runs` is a folder of
    finished runs to hand out. Raises ValueError or OSError with a sentence if a part cannot be had.
    """
    from groundling.data.sources import find_source

    if find_spec("uv") is None:
        raise ValueError('The bundle needs uv. Install it: pip install "groundling[bundle]"')
    for system in systems:
        if system not in SYSTEMS:
            raise ValueError(f"--for {system} is unknown. Use {', '.join(SYSTEMS)}.")
    with find_source("shakespeare").files[0].open() as file:
        text = file.read()
    with storage.new_folder(out) as folder, TemporaryDirectory() as temporary:
        say("Building the wheel of groundling.")
        wheel = _own_wheel(Path(temporary))
        for system in systems:
            say(f"Downloading wheels for {system}.")
            _wheels(folder / "wheels" / system, wheel, system, python, torch_index)
        _chapters(folder / "chapters")
        storage.write_file(folder / _TEXT, text)
        if runs is not None:
            say(f"Copying {runs}.")
            shutil.copytree(runs, folder / "runs")
        storage.write_file(folder / "START-HERE.txt", _start_here(systems, python, runs is not None))
        storage.write_file(folder / "SHA256SUMS", _sums(folder))
    return out


def _own_wheel(folder: Path) -> Path:
    """The wheel of this groundling: built from its sources if it was installed from them, else downloaded."""
    distribution = importlib.metadata.distribution("groundling")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    source = url2pathname(urlsplit(origin["url"]).path) if origin.get("url", "").startswith("file:") else None
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), source or f"groundling=={distribution.version}")
    return next(folder.glob("groundling-*.whl"))


def _wheels(folder: Path, own: Path, system: str, python: str, torch_index: str | None) -> None:
    """Download all that groundling needs on a system, and the wheel itself."""
    storage.make_folder(folder)
    places = (
        []
        if torch_index is None
        else ["--find-links" if Path(torch_index).is_dir() else "--extra-index-url", torch_index]
    )
    platform, tags = SYSTEMS[system]
    target = ["--python-platform", platform, "--python-version", python, "--only-binary", ":all:"]
    pinned = _uv(
        "pip", "compile", "-", "--no-header", "--no-annotate", *target, *places, stdin=f"groundling @ {own.as_uri()}"
    )
    wanted = folder / "requirements.txt"
    storage.write_file(
        wanted, "".join(f"{line}\n" for line in pinned.splitlines() if "==" in line)
    )  # not groundling itself
    platforms = [word for tag in tags for word in ("--platform", tag)]
    _pip(
        "download", "--no-deps", "--only-binary", ":all:", "--python-version", python, *platforms, *places,
        "--dest", str(folder), "--requirement", str(wanted),
    )  # fmt: skip
    shutil.copy(own, folder)


def _pip(*words: str) -> str:
    return _command("pip", *words, "--quiet", "--disable-pip-version-check")


def _uv(*words: str, stdin: str) -> str:
    return _command("uv", *words, stdin=stdin)


def _command(program: str, *words: str, stdin: str = "") -> str:
    """The output of a Python program. Raises ValueError with the last line of what it says if it fails."""
    command = [sys.executable, "-m", program, *words]
    ended = subprocess.run(command, input=stdin, capture_output=True, text=True, encoding="utf-8")
    if ended.returncode:
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()] or ["no message"]
        why = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1])
        raise ValueError(f"{program} {words[0]} failed: {why}")
    return ended.stdout


def _chapters(folder: Path) -> None:
    storage.make_folder(folder)
    for number, chapter in chapters().items():
        for ending, write in ((".py", program), (".ipynb", notebook), (".html", page)):
            storage.write_file(folder / f"chapter_{number}{ending}", write(chapter))


def _start_here(systems: Sequence[str], python: str, with_runs: bool) -> str:
    """Two commands for each system, to be pasted in this folder."""
    names = {"linux": "Linux", "macos": "macOS (Apple silicon)", "windows": "Windows"}
    parts = [f"The course of groundling. It needs Python {python} and no network. In this folder, type:\n"]
    for system in systems:
        make, pip, own = (
            ("py -m venv venv", r"venv\Scripts\pip", r"venv\Scripts\groundling")
            if system == "windows"
            else ("python3 -m venv venv", "venv/bin/pip", "venv/bin/groundling")
        )
        parts.append(
            f"{names[system]}:\n\n    {make}\n    {pip} install --no-index --find-links wheels/{system} groundling\n"
            f"    {own} doctor --class\n    {own} course start 1 --text {_TEXT}\n"
        )
    parts.append("To read all chapters, open chapters/chapter_1.html in a browser.\n")
    if with_runs:
        parts.append("The folder runs has finished runs of all chapters. If you fall behind, copy it into course/.\n")
    parts.append("To check the copy on Linux: sha256sum --check --quiet SHA256SUMS\n")
    return "\n".join(parts)


def _sums(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(f"{storage.sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
