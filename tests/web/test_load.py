"""Load: many streams, slow clients and clients that disconnect, with a server in its own process. Takes minutes.

`GROUNDLING_LOAD_SECONDS` is how long the 64 streams go on (60 if not set); `pytest -s` shows the figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from asked import Server, request, wait_for

from groundling.run.run import Run
from groundling.web.timeouts import HEADER_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECONDS = float(os.environ.get("GROUNDLING_LOAD_SECONDS", "60"))
STREAMS = 64
LEAVERS = 500
SLOW = 500
GROWTH = 0.05


class Child(Server):
    """A server process."""

    def __init__(self, run: Run) -> None:
        command = [sys.executable, "-m", "groundling", "serve", str(run.folder), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        super().__init__(int(self.process.stdout.readline().split("/")[2].split(":")[1]), None)

    @property
    def megabytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


@pytest.fixture(scope="module")
def child(trained: list[Run]) -> Iterator[Child]:
    child = Child(trained[0])
    yield child
    child.process.send_signal(signal.SIGINT)
    assert child.process.wait(30) == 0


def asked(i: int, max_tokens: int, stream: bool = True) -> bytes:
    prompt = "The end of it all is near"[: 1 + i % 25]
    return request(
        json.dumps({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": stream}).encode()
    )


async def streamed(port: int, i: int, max_tokens: int) -> str:
    """The text of a stream, read over a plain socket, which needs little CPU time beside the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(asked(i, max_tokens))
    text = []
    async for line in reader:
        if line.startswith(b"data: [DONE]"):
            break
        if line.startswith(b"data: "):
            text.append(json.loads(line[6:])["choices"][0]["text"])
    writer.close()
    return "".join(text)


async def leave(port: int, i: int) -> None:
    """Send a request and disconnect at a random moment, streaming or not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(asked(i, 16_000, stream=i % 2 == 0))
    try:
        await asyncio.wait_for(reader.read(random.Random(i).randrange(1, 20_000)), random.Random(i).random())
    except TimeoutError:
        pass
    writer.transport.abort()


def test_streams_leavers_and_slow_clients(child: Child) -> None:
    async def round_of(tokens: int) -> list[str]:
        return await asyncio.gather(*(streamed(child.port, i, tokens) for i in range(STREAMS)))

    async def leavers(n: int) -> None:
        for begin in range(0, n, 50):
            await asyncio.gather(*(leave(child.port, i) for i in range(begin, begin + 50)))

    alone = [asyncio.run(streamed(child.port, i, 100)) for i in range(STREAMS)]
    asyncio.run(round_of(100))
    asyncio.run(leavers(100))
    child.is_well()
    before, begun, rounds = child.megabytes, time.monotonic(), 0
    figures = child.figures()
    while time.monotonic() - begun < SECONDS:
        assert asyncio.run(round_of(100)) == alone
        rounds += 1
    seconds = time.monotonic() - begun
    print(
        f"\n{rounds} rounds of {STREAMS} streams in {seconds:.0f} s: {rounds * STREAMS * 100 / seconds:,.0f} tokens/s"
    )
    child.is_well()

    begun = time.monotonic()
    asyncio.run(leavers(LEAVERS))
    child.is_well()
    after = child.figures()
    cancelled = after["cancelled"] - figures["cancelled"]
    print(f"{LEAVERS} left in {time.monotonic() - begun:.0f} s, {cancelled:.0f} texts given up")
    assert LEAVERS * 0.9 < cancelled <= LEAVERS

    slow_clients(child)
    child.is_well()
    growth = child.megabytes / before - 1
    print(f"memory: {before:.1f} MB before, {child.megabytes:.1f} MB after: {growth:+.1%}")
    assert growth < GROWTH


def slow_clients(child: Child) -> None:
    """Half of them never finish their headers, half their body. Another client is served meanwhile."""
    unfinished = asked(0, 4)
    starts = [b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", unfinished[:-5]]
    slow = [child.connect(starts[i % 2]) for i in range(SLOW)]
    begun, latencies = time.monotonic(), []
    while time.monotonic() - begun < HEADER_SECONDS - 2:
        for client in slow[::2]:
            client.sendall(b"a")
        asked_at = time.monotonic()
        assert child.post("/v1/completions", {"prompt": "The ", "max_tokens": 10}).status == 200
        latencies.append(time.monotonic() - asked_at)
        time.sleep(0.5)
    print(f"{SLOW} slow clients: ten tokens for another in at most {max(latencies):.2f} s")
    wait_for(lambda: time.monotonic() - begun > HEADER_SECONDS + 1)
    for client in slow[::2]:
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")
    for client in slow:
        client.close()
