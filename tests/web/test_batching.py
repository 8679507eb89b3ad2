"""Continuous batching: texts equal those generated alone, the queue is bounded, and slots are freed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai as openai_package
import pytest
from asked import SLOTS, Server, request, serving, wait_for

from groundling.config import Sampling
from groundling.inference.engine import Engine, Request
from groundling.web import batching
from groundling.web.batching import Batcher, Chunks, Job
from groundling.web.errors import ApiError
from groundling.web.loaded_model import LoadedModel
from groundling.web.metrics import Metrics

LONG = 8_000  # tokens: longer than any test


def text(tokens: int = LONG, seed: int = 0) -> Request:
    return Request([1, 2, 3], tokens, Sampling(temperature=1.0, top_k=0, seed=seed))


@pytest.fixture
def batcher(models: list[LoadedModel]) -> Iterator[Batcher]:
    batcher = Batcher(models[0], 2, Metrics())
    yield batcher
    batcher.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


async def read(job: Job, steps: int | None = None) -> list[Chunks]:
    """The chunks of all steps, or of the first `steps`."""
    got = []
    async for chunks in job.chunks():
        got.append(chunks)
        if len(got) == steps:
            break
    return got


def test_64_streams_equal_those_generated_alone(server: Server) -> None:
    client = server.client()

    def write(i: int, stream: bool) -> str:
        settings: dict[str, Any] = {
            "model": "letters", "prompt": "The end of it"[: i % 13 + 1], "max_tokens": 20 + i % 20, "seed": i,
            "temperature": 0 if i % 2 else 1,
        }  # fmt: skip
        if not stream:
            return client.completions.create(**settings).choices[0].text
        return "".join(chunk.choices[0].text for chunk in client.completions.create(**settings, stream=True))

    alone = [write(i, False) for i in range(64)]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(lambda i: write(i, True), range(64)))
    assert together == alone
    assert len(set(alone)) > 40


def test_a_client_that_leaves_frees_its_slots_within_two_steps(batcher: Batcher) -> None:
    async def leave() -> int:
        job = Job([text(), text()])
        batcher.submit(job)
        await read(job, 5)
        job.cancelled = True
        at = batcher.steps
        while not batcher.idle:
            await asyncio.sleep(0)
        return batcher.steps - at

    for _ in range(20):
        assert run(leave()) <= 2


def test_a_waiting_text_gets_a_freed_slot(batcher: Batcher) -> None:
    async def wait_and_leave() -> None:
        first, gone, second = Job([text(), text()]), Job([text()]), Job([text(7)])
        for job in (first, gone, second):
            batcher.submit(job)
        await read(first, 3)
        assert second.queue.empty()
        first.cancelled = gone.cancelled = True
        assert len(await read(second)) == 7

    run(wait_and_leave())


def test_disconnecting_ends_the_work_streaming_or_not(server: Server) -> None:
    before = server.figures()
    for i in range(20):
        body = json.dumps({"prompt": "The ", "max_tokens": LONG, "stream": i % 2 == 0, "n": 2}).encode()
        with server.connect(request(body)) as client:
            wait_for(lambda i=i: server.figures()["prompt_tokens"] - before["prompt_tokens"] == 4 * (i + 1))  # queued
            if i % 2 == 0:
                client.recv(500 * (i + 1))
    wait_for(lambda: server.figures()["cancelled"] - before["cancelled"] == 40)
    server.is_well()
    after = server.figures()
    assert after["generated_tokens"] - before["generated_tokens"] < 40 * LONG / 10


def test_a_full_queue_says_when_to_come_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MAX_WAITING", 4)
    client = server.client()
    streams = [
        client.completions.create(model="letters", prompt="The ", max_tokens=LONG, n=SLOTS // 2, stream=True)
        for _ in range(2)
    ]
    for stream in streams:
        next(iter(stream))  # it is running
    waiting = client.completions.create(model="letters", prompt="The ", max_tokens=1, n=4, stream=True)
    with pytest.raises(openai_package.RateLimitError) as full:
        client.completions.create(model="letters", prompt="The ", max_tokens=1, stream=True)
    assert full.value.code == "queue_full" and int(full.value.response.headers["Retry-After"]) >= 1
    assert client.completions.create(model="poems", prompt="The ", max_tokens=1).usage is not None  # own queue
    streams[0].close()
    assert sum(chunk.choices[0].finish_reason == "length" for chunk in waiting) == 4  # its turn came
    streams[1].close()


def test_a_failure_is_reported_and_the_next_request_succeeds(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = server.client()
    real = Engine.step
    fails = threading.Event()

    def step(self: Engine) -> Any:
        if fails.is_set():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self)

    monkeypatch.setattr(Engine, "step", step)
    stream = client.completions.create(model="letters", prompt="The ", max_tokens=LONG, stream=True)
    next(iter(stream))
    fails.set()
    with pytest.raises(openai_package.APIError, match="Generation failed"):
        list(stream)
    answer = server.post("/v1/completions", {"prompt": "The "})
    assert answer.status == 500 and "allocate" not in answer.error["message"]
    assert "can't allocate memory" in caplog.text
    fails.clear()
    assert server.post("/v1/completions", {"prompt": "The "}).status == 200


def test_closing_sends_an_error_to_unfinished_jobs(models: list[LoadedModel]) -> None:
    async def close() -> None:
        batcher = Batcher(models[0], 1, Metrics())
        jobs = [Job([text()]), Job([text()])]
        for job in jobs:
            batcher.submit(job)
        await read(jobs[0], 2)
        await asyncio.to_thread(batcher.close)
        for job in jobs:
            with pytest.raises(ApiError, match="stopping"):
                await read(job)
        with pytest.raises(ApiError, match="stopping"):
            batcher.submit(Job([text()]))
        assert batcher.idle and not batcher.alive

    run(close())


def test_a_dead_engine_is_not_healthy(models: list[LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with serving(models[:1]) as broken:
        assert broken.ask("GET", "/health").status == 200
        for method in ("step", "__init__"):  # a step fails, and so does making a new engine
            monkeypatch.setattr(Engine, method, lambda *_: 1 / 0)
        assert broken.post("/v1/completions", {"prompt": "The "}).status == 500
        wait_for(lambda: broken.ask("GET", "/health").status == 503)
