"""Many clients, one model: texts join and leave a running batch token by token (continuous batching).

One thread owns the engine. Orders come to it by a bounded queue; what it generates goes back to the event loop once a
step. A text whose client has left is dropped before the next step begins.
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

from groundling.inference.engine import Engine, GeneratedToken, Request
from groundling.inference.stream import StreamDecoder
from groundling.web.errors import ApiError
from groundling.web.loaded_model import LoadedModel
from groundling.web.metrics import Metrics

MAX_WAITING = 256
"""Texts that may wait for a slot; beyond that, clients are asked to come back."""

_log = logging.getLogger("groundling.web")


@dataclass(frozen=True)
class Piece:
    """What a step adds to a text. `finish` says why it ended, if it did."""

    text: str
    tokens: Sequence[GeneratedToken]
    finish: Literal["stop", "length"] | None = None


Pieces = list[tuple[int, Piece]]
"""Pieces with the number of the text in its order that each belongs to."""


@dataclass(eq=False)
class Job:
    """What one client asks for: texts to write until one of `stop` appears, and the way back to the client."""

    texts: Sequence[Request]
    stop: Sequence[str] = ()
    left: bool = False
    """Set when the client is gone: nothing more is generated for it."""
    queue: asyncio.Queue[Pieces | ApiError] = field(default_factory=asyncio.Queue)
    arrived: float = field(default_factory=time.perf_counter)
    begun: bool = False

    async def pieces(self) -> AsyncIterator[Pieces]:
        """Yield what was generated, step by step, until each text has ended. Raises ApiError if generating fails."""
        unfinished = len(self.texts)
        while unfinished:
            pieces = await self.queue.get()
            if isinstance(pieces, ApiError):
                raise pieces
            unfinished -= sum(piece.finish is not None for _, piece in pieces)
            yield pieces


@dataclass
class _Pending:
    """A text that has a slot, or waits for one."""

    order: Job
    index: int
    writer: StreamDecoder


class Batcher:
    """The thread of one model, and the orders that it works on."""

    def __init__(self, model: LoadedModel, slots: int, metrics: Metrics) -> None:
        self.steps = 0
        self._model, self._slots, self._metrics = model, slots, metrics
        self._engine = self._new_engine()
        metrics.begin(model.name)
        self._waiting: deque[_Pending] = deque()
        self._running: dict[int, _Pending] = {}  # by slot
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()  # guards what waits, and wakes the thread
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"engine of {model.name}", daemon=True)
        self._thread.start()

    def _new_engine(self) -> Engine:
        return Engine(self._model.model, self._slots, decoder=self._model.decoder)

    @property
    def alive(self) -> bool:
        """Whether the thread is there to work."""
        return self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """Whether no text has a slot or waits for one."""
        return not self._running and not self._waiting

    def submit(self, order: Job) -> None:
        """Put an order into the queue; call it in the event loop that reads the order's pieces.

        Raises ApiError: 429 if the queue has no room for it, 503 if the server is stopping.
        """
        name, tokenizer = self._model.name, self._model.tokenizer
        with self._changed:
            if self._closing or not self.alive:
                raise ApiError(503, "The server is stopping.")
            if len(self._waiting) + len(order.texts) > self._slots - len(self._running) + MAX_WAITING:
                self._metrics.rejected.labels(name).inc(len(order.texts))
                raise ApiError(
                    429, f"{len(self._waiting)} texts are waiting already: come back later.", code="queue_full",
                    headers={"Retry-After": "1"},
                )  # fmt: skip
            self._loop = asyncio.get_running_loop()
            self._waiting.extend(
                _Pending(order, i, StreamDecoder(tokenizer, order.stop)) for i in range(len(order.texts))
            )
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the step that it is at. Who still waits is told."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                try:
                    self._drop()
                    self._admit()
                    self._step()
                except Exception:  # such as too little memory; what is ordered next may fit
                    _log.exception("Generating failed, and what was ordered is given up.")
                    self._give_up(ApiError(500, "Generating failed; the server's log says why."))
                    del self._engine  # before there is another one: both may not fit
                    self._engine = self._new_engine()
        finally:
            self._closing = True
            self._give_up(ApiError(503, "The server is stopping."))

    def _wait(self) -> bool:
        """Sleep until there is work; whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or not self.idle)
            return not self._closing

    def _drop(self) -> None:
        """Forget the texts of clients that have left."""
        gone = [slot for slot, place in self._running.items() if place.order.left]
        for slot in gone:
            del self._running[slot]
            self._engine.free(slot)
        with self._changed:
            waiting = [place for place in self._waiting if not place.order.left]
            n_gone = len(gone) + len(self._waiting) - len(waiting)
            self._waiting = deque(waiting)
        self._metrics.cancelled.labels(self._model.name).inc(n_gone)

    def _admit(self) -> None:
        """Give free slots to those who came first."""
        with self._changed:
            while self._waiting and self._engine.free_slots:
                place = self._waiting[0]
                self._running[self._engine.add(place.order.texts[place.index])] = place
                self._waiting.popleft()
            waiting = len(self._waiting)
        self._metrics.waiting.labels(self._model.name).set(waiting)

    def _step(self) -> None:
        """One more token of each text, handed to those who wait for it."""
        begun = time.perf_counter()
        pieces: dict[Job, Pieces] = defaultdict(list)
        n_tokens = 0
        for written in self._engine.step():
            n_tokens += 1
            place = self._running.get(written.slot)
            if place is not None:  # else a stop text ended it within this step
                piece = self._piece(place, written)
                pieces[place.order].append((place.index, piece))
        self.steps += 1
        now, name = time.perf_counter(), self._model.name
        for order in pieces:
            if not order.begun:
                order.begun = True
                self._metrics.first_token_seconds.labels(name).observe(now - order.arrived)
        self._metrics.step_seconds.labels(name).observe(now - begun)
        self._metrics.generated_tokens.labels(name).inc(n_tokens)
        self._metrics.running.labels(name).set(len(self._running))
        self._send(pieces)

    def _piece(self, place: _Pending, written: GeneratedToken) -> Piece:
        ended_document = written.finish == "end"
        text = "" if ended_document else place.writer.push(written.token)
        if place.writer.stopped or written.finish:
            del self._running[written.slot]
            if not written.finish:
                self._engine.free(written.slot)
            text += place.writer.finish()
            reason: Literal["stop", "length"] = "length" if written.finish == "length" else "stop"
            return Piece(text, [] if ended_document else [written], "stop" if place.writer.stopped else reason)
        return Piece(text, [written])

    def _give_up(self, error: ApiError) -> None:
        """Tell everyone who runs or waits why nothing comes any more."""
        with self._changed:
            places = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
        self._send(dict.fromkeys((place.order for place in places), error))

    def _send(self, news: Mapping[Job, Pieces | ApiError]) -> None:
        """Hand everything to the event loop at once: waking it costs a system call."""

        def deliver() -> None:
            for order, each in news.items():
                order.queue.put_nowait(each)

        if news and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and nobody is there to hear
                self._loop.call_soon_threadsafe(deliver)
