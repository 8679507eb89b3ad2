"""The studio as the command line starts it, and its pages in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>{{ evil = 1 }}"

Open = Callable[..., Any]


@dataclass
class Server:
    address: str
    runs: Path
    process: subprocess.Popen[str]


def started(folder: Path, verb: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "groundling", verb, *arguments, "--port", "0", "--out", str(folder / "runs")],
        stdout=subprocess.PIPE, text=True, cwd=folder,
    )  # fmt: skip


def address_of(process: subprocess.Popen[str]) -> str:
    """What the first line with an address says."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise AssertionError("it ended")


def opened_pages(browser: Any, server: Server) -> Iterator[Open]:
    """Opens a page; fails at the end if anything went wrong in it, or if it wanted anything from elsewhere."""
    context = browser.new_context()
    context.set_default_timeout(60_000)
    trouble: list[str] = []

    def open_page(path: str, width: int = 1200, at: str = server.address) -> Any:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        root = at.removesuffix("/studio")
        page.on("request", lambda request: request.url.startswith(root) or trouble.append(request.url))
        page.goto(at + path)
        return page

    yield open_page
    context.close()
    assert trouble == []
