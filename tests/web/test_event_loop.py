"""`groundling.serve` and `groundling.studio` in an event loop, as in a notebook: they serve in a thread."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from openai import AsyncOpenAI

import groundling
from groundling.config import Sampling
from groundling.run.run import Run
from groundling.web.sockets import BackgroundServer


def is_free(address: str) -> bool:
    """Whether a program can listen on the port of this URL."""
    try:
        socket.create_server(("127.0.0.1", int(address.split(":")[2].partition("/")[0]))).close()
    except OSError:
        return False
    return True


async def text(server: BackgroundServer, prompt: str) -> str:
    async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        answer = await client.completions.create(model="letters", prompt=prompt, max_tokens=20, seed=3)
        return str(answer.choices[0].text)


def test_servers_run_beside_the_event_loop(trained: list[Run]) -> None:
    lines: list[str] = []
    threads = threading.active_count()

    async def main() -> None:
        options: dict[str, Any] = {"port": 0, "notice": lines.append}
        with (
            groundling.serve(trained[0].folder, **options) as one,
            groundling.serve(trained[0].folder, **options) as two,
        ):
            assert lines[1::2] == [
                f"The API is at {each.url} (in a thread of its own: its close() stops it)" for each in (one, two)
            ]
            assert one.url != two.url and "is running" in repr(one)
            texts = await asyncio.gather(text(one, "The "), text(two, "The "), text(one, "An "))
            taken = int(one.url.split(":")[2].partition("/")[0])
            with pytest.raises(OSError, match=f"Cannot listen on port {taken} of 127.0.0.1 .*Use another --port"):
                groundling.serve(trained[0].folder, port=taken)
            sampling = Sampling(temperature=1.0, top_k=0, seed=3)
            want = ["".join(trained[0].stream(prompt, sampling, 20)) for prompt in ("The ", "An ")]
            assert texts == [want[0], want[0], want[1]]
            assert not is_free(one.url)
            two.close()
            assert await text(one, "The ") == want[0]
        assert is_free(one.url) and is_free(two.url) and "has stopped" in repr(one)
        one.close()  # again: nothing happens

    asyncio.run(main())
    assert threading.active_count() == threads


def test_a_program_that_forgets_to_close_ends(trained: list[Run]) -> None:
    program = f"""
import asyncio, groundling, urllib.request
async def main():
    server = groundling.serve({str(trained[0].folder)!r}, port=0)
    assert await asyncio.to_thread(lambda: urllib.request.urlopen(server.url + "/models").status) == 200
asyncio.run(main())
print("ended")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "") and result.stdout.endswith("ended\n")


CELLS = [
    """
import groundling, urllib.request
server = groundling.serve("RUN", port=0)
""",
    """
urllib.request.urlopen(server.url + "/models").read().decode()
""",
    """
studio = groundling.studio(out="RUNS", port=0)
""",
    """
with urllib.request.urlopen(studio.url) as answer:
    print(answer.status)
try:
    groundling.studio(port=0)
except ValueError as error:
    print(error)
studio.close()
with groundling.studio(out="RUNS", port=0) as again, urllib.request.urlopen(again.url + "/playground") as answer:
    print(answer.status)
for again in (lambda: groundling.studio(out="elsewhere"), lambda: groundling.serve("RUN", port=0, studio=True)):
    try:
        again()
    except ValueError as error:
        print(error)
server.close()
""",
]


def test_cells_of_a_notebook_go_on(kernel: str, trained: list[Run], tmp_path: Path) -> None:
    pytest.importorskip("nicegui", reason="needs the extra studio")
    run = trained[0].folder
    sources = [cell.replace("RUNS", str(run.parent)).replace("RUN", str(run)) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, sources)))
    NotebookClient(notebook, timeout=120, kernel_name=kernel, resources={"metadata": {"path": str(tmp_path)}}).execute()
    served, models, opened, rest = ("".join(map(shown, cell.outputs)) for cell in notebook.cells)
    assert served.splitlines()[-1].endswith("/v1 (in a thread of its own: its close() stops it)")
    assert '"id":"letters"' in models
    address = opened.split()[4]
    assert opened == f"The studio is at {address} (in a thread of its own: its close() stops it)\n"
    first, second, third, last, *refused = rest.splitlines()
    assert len(refused) == 2 and all(each.startswith("This Python process has already opened") for each in refused)
    assert first == last == "200" and third.startswith("The studio is at ")
    assert second == f"The studio is already running at {address}. Use that one, or close it first."
    assert is_free(address) and is_free(served.splitlines()[-1].split()[4])


def shown(output: Any) -> str:
    """What a cell shows."""
    return str(output.text if output.output_type == "stream" else output.data["text/plain"])
