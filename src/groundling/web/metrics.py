"""Metrics for Prometheus, as `/metrics` shows them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "count_responses"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one server. Thread-safe."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()  # not the global one: a process may run several servers
        model = ("model",)
        self.responses = Counter("groundling_responses", "HTTP responses.", ("path", "status"), registry=own)
        self.prompt_tokens = Counter("groundling_prompt_tokens", "Prompt tokens.", model, registry=own)
        self.generated_tokens = Counter("groundling_generated_tokens", "Generated tokens.", model, registry=own)
        self.rejected = Counter("groundling_rejected", "Texts rejected: the queue was full.", model, registry=own)
        self.cancelled = Counter("groundling_cancelled", "Texts cancelled: the client left.", model, registry=own)
        self.running = Gauge("groundling_running", "Texts being generated.", model, registry=own)
        self.waiting = Gauge("groundling_waiting", "Texts waiting for a slot.", model, registry=own)
        self.step_seconds = Histogram(
            "groundling_step_seconds", "Time of a step, which adds a token to each running text.", model,
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "groundling_first_token_seconds", "Time from a request to its first token.", model,
            buckets=_SECONDS, registry=own,
        )  # fmt: skip

    def add_model(self, model: str) -> None:
        """Set a model's metrics to zero. Without this, each is missing until its first event."""
        for metric in (
            self.prompt_tokens, self.generated_tokens, self.rejected, self.cancelled, self.running, self.waiting,
            self.step_seconds, self.first_token_seconds,
        ):  # fmt: skip
            metric.labels(model)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def count_responses(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """ASGI middleware that counts responses by route and status."""

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")  # the route's: clients can request any path
                metrics.responses.labels(path, message["status"]).inc()
            await send(message)

        await app(scope, receive, sending)

    return counting
