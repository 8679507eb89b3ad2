"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "counted"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The figures of one server. Each may be changed from any thread."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()  # its own: a process may hold several servers
        model = ("model",)
        self.responses = Counter("groundling_responses", "Answers.", ("path", "status"), registry=own)
        self.prompt_tokens = Counter("groundling_prompt_tokens", "Tokens of prompts.", model, registry=own)
        self.generated_tokens = Counter("groundling_generated_tokens", "Tokens generated.", model, registry=own)
        self.rejected = Counter("groundling_rejected", "Texts refused: the queue was full.", model, registry=own)
        self.cancelled = Counter("groundling_cancelled", "Texts given up: the client had left.", model, registry=own)
        self.running = Gauge("groundling_running", "Texts being generated.", model, registry=own)
        self.waiting = Gauge("groundling_waiting", "Texts that wait for a slot.", model, registry=own)
        self.step_seconds = Histogram(
            "groundling_step_seconds", "Time for one more token of every running text.", model,
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "groundling_first_token_seconds", "Time from a request to its first token.", model,
            buckets=_SECONDS, registry=own,
        )  # fmt: skip

    def begin(self, model: str) -> None:
        """Let the figures of a model stand at zero: without this they are missing until something happens."""
        for metric in (
            self.prompt_tokens, self.generated_tokens, self.rejected, self.cancelled, self.running, self.waiting,
            self.step_seconds, self.first_token_seconds,
        ):  # fmt: skip
            metric.labels(model)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


def counted(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """`app`, with its answers counted by path and status."""

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")  # what was asked for may be anything
                metrics.responses.labels(path, message["status"]).inc()
            await send(message)

        await app(scope, receive, sending)

    return counting
