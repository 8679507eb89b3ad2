"""Continuous batching: one model serves many clients, and texts join and leave its batch between any two tokens.

One thread per model owns the engine. Jobs reach it through a bounded queue. After each step it hands the new tokens to
the event loop. A text whose client has disconnected is dropped before the next step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from groundling.data.conversations import ToolCall
from groundling.inference.chat import TurnDecoder
from groundling.inference.engine import Engine, GeneratedToken, Request
from groundling.inference.stream import StreamDecoder
from groundling.web.errors import ApiError
from groundling.web.loaded_model import LoadedModel
from groundling.web.metrics import Metrics

MAX_WAITING = 256
"""Texts that may wait for a slot. More are rejected with status 429."""

_log = logging.getLogger("groundling.web")


@dataclass(frozen=True)
class Chunk:
    """What one step adds to a text. `finish` is the reason why the text ended, if it did, and `calls` are the tools
    that it calls then."""

    text: str
    tokens: Sequence[GeneratedToken]
    finish: Literal["stop", "length", "tool_calls"] | None = None
    calls: Sequence[ToolCall] = ()


Chunks = list[tuple[int, Chunk]]
"""The chunks of one step, each with the index of its text in the job."""


@dataclass(eq=False)
class Job:
    """The texts that one HTTP request generates, each until one of `stop` appears, and the queue of their chunks. With
    `chat`, they are turns of a chat."""

    texts: Sequence[Request]
    stop: Sequence[str] = ()
    chat: bool = False
    cancelled: bool = False
    """Set when the client disconnects. Generation then stops."""
    queue: asyncio.Queue[Chunks | ApiError] = field(default_factory=asyncio.Queue)
    created: float = field(default_factory=time.perf_counter)
    started: bool = False

    async def chunks(self) -> AsyncIterator[Chunks]:
        """Yield the chunks of each step until every text has ended. Raises ApiError if generation fails."""
        unfinished = len(self.texts)
        while unfinished:
            chunks = await self.queue.get()
            if isinstance(chunks, ApiError):
                raise chunks
            unfinished -= sum(chunk.finish is not None for _, chunk in chunks)
            yield chunks


@dataclass
class _Text:
    """A text that has a slot, or waits for one."""

    job: Job
    index: int
    decoder: StreamDecoder


class Batcher:
    """A model's engine, its thread, and the texts that are running or waiting."""

    def __init__(self, model: LoadedModel, slots: int, metrics: Metrics) -> None:
        self.steps = 0
        self._model, self._slots, self._metrics = model, slots, metrics
        self._engine = self._new_engine()
        metrics.add_model(model.name)
        self._waiting: deque[_Text] = deque()
        self._running: dict[int, _Text] = {}  # by slot
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()  # guards `_waiting`, and wakes the thread
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"engine of {model.name}", daemon=True)
        self._thread.start()

    def _new_engine(self) -> Engine:
        return Engine(self._model.model, self._slots, decoder=self._model.decoder)

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """Whether no text is running or waiting."""
        return not self._running and not self._waiting

    def submit(self, job: Job) -> None:
        """Add a job to the queue. Call it in the event loop that reads the job's chunks.

        Raises ApiError: 429 if the queue is full, 503 if the server is stopping.
        """
        name, tokenizer = self._model.name, self._model.tokenizer
        with self._changed:
            if self._closing or not self.alive:
                raise ApiError(503, "The server is stopping.")
            if len(self._waiting) + len(job.texts) > self._slots - len(self._running) + MAX_WAITING:
                self._metrics.rejected.labels(name).inc(len(job.texts))
                raise ApiError(
                    429, f"The queue is full: {len(self._waiting)} texts are waiting. Try again later.",
                    code="queue_full", headers={"Retry-After": "1"},
                )  # fmt: skip
            self._loop = asyncio.get_running_loop()
            chat = self._model.chat_tokenizer if job.chat else None
            for i in range(len(job.texts)):
                decoder = TurnDecoder(chat, job.stop) if chat else StreamDecoder(tokenizer, job.stop)
                self._waiting.append(_Text(job, i, decoder))
            self._changed.notify()

    def close(self) -> None:
        """Stop the thread after its current step. Unfinished jobs get an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                try:
                    self._drop_cancelled()
                    self._fill_slots()
                    self._step()
                except Exception:  # out of memory, for instance: the next jobs may fit
                    _log.exception("Generation failed. All running and waiting texts get an error.")
                    self._fail_all(ApiError(500, "Generation failed. The server's log has the details."))
                    del self._engine  # before making a new one: memory may not hold both
                    self._engine = self._new_engine()
        finally:
            self._closing = True
            self._fail_all(ApiError(503, "The server is stopping."))

    def _wait(self) -> bool:
        """Sleep until there is work. Returns whether to continue."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or not self.idle)
            return not self._closing

    def _drop_cancelled(self) -> None:
        """Drop the texts of clients that have disconnected."""
        dropped = [slot for slot, text in self._running.items() if text.job.cancelled]
        for slot in dropped:
            del self._running[slot]
            self._engine.free(slot)
        with self._changed:
            waiting = [text for text in self._waiting if not text.job.cancelled]
            n_dropped = len(dropped) + len(self._waiting) - len(waiting)
            self._waiting = deque(waiting)
        self._metrics.cancelled.labels(self._model.name).inc(n_dropped)

    def _fill_slots(self) -> None:
        """Give free slots to waiting texts, first come, first served."""
        with self._changed:
            while self._waiting and self._engine.free_slots:
                text = self._waiting[0]
                self._running[self._engine.add(text.job.texts[text.index])] = text
                self._waiting.popleft()
            waiting = len(self._waiting)
        self._metrics.waiting.labels(self._model.name).set(waiting)

    def _step(self) -> None:
        """Generate one more token of each running text, and send the chunks."""
        began = time.perf_counter()
        chunks: dict[Job, Chunks] = defaultdict(list)
        n_tokens = 0
        for token in self._engine.step():
            n_tokens += 1
            text = self._running.get(token.slot)
            if text is not None:  # else a stop text ended it earlier in this step
                chunks[text.job].append((text.index, self._chunk(text, token)))
        self.steps += 1
        now, name = time.perf_counter(), self._model.name
        for job in chunks:
            if not job.started:
                job.started = True
                self._metrics.first_token_seconds.labels(name).observe(now - job.created)
        self._metrics.step_seconds.labels(name).observe(now - began)
        self._metrics.generated_tokens.labels(name).inc(n_tokens)
        self._metrics.running.labels(name).set(len(self._running))
        self._send(chunks)

    def _chunk(self, text: _Text, token: GeneratedToken) -> Chunk:
        decoder = text.decoder
        ended_document = token.finish == "end"
        new = "" if ended_document else decoder.push(token.token)
        if not decoder.stopped and not token.finish:
            return Chunk(new, [token])
        del self._running[token.slot]
        if not token.finish:  # else the engine has freed the slot
            self._engine.free(token.slot)
        new += decoder.finish()
        if token.finish == "length" and not decoder.stopped:
            finish: Literal["stop", "length", "tool_calls"] = "length"
        else:
            finish = "tool_calls" if decoder.calls else "stop"
        return Chunk(new, [token], finish, decoder.calls)

    def _fail_all(self, error: ApiError) -> None:
        """Send an error to every running and waiting job, and forget their texts."""
        with self._changed:
            texts = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
        self._send(dict.fromkeys((text.job for text in texts), error))

    def _send(self, news: Mapping[Job, Chunks | ApiError]) -> None:
        """Hand everything to the event loop in one call: each one costs a system call."""

        def deliver() -> None:
            for job, each in news.items():
                job.queue.put_nowait(each)

        if news and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, so nobody is waiting
                self._loop.call_soon_threadsafe(deliver)
