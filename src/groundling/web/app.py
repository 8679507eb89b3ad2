"""The routes of the API, and what each request becomes."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from groundling import __version__
from groundling.config import Sampling
from groundling.inference.engine import GeneratedToken, Request, window_start
from groundling.web.batching import Batcher, Chunk, Chunks, Job
from groundling.web.errors import ApiError, ErrorBody, add_error_handlers, client_disconnected
from groundling.web.loaded_model import LoadedModel
from groundling.web.metrics import CONTENT_TYPE_LATEST, Metrics
from groundling.web.responses import ResponseFormat, complete_response, stream_response
from groundling.web.schemas import (
    MAX_ECHO,
    MAX_OUTPUT,
    MAX_SEQUENCES,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Generation,
    StrictRoute,
    TokenizeRequest,
)

_API_PATHS = ("/v1/", "/completions", "/chat/", "/models", "/tokenize", "/detokenize", "/health", "/metrics")


def create_app(api: Api) -> FastAPI:
    """An app with the API's routes, to which pages can be added. Serve it inside a `Guard` only."""
    app = FastAPI(
        title="groundling", version=__version__, summary="Language models behind an OpenAI-compatible API.",
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    add_error_handlers(app)
    app.add_middleware(_PlainPaths)
    app.include_router(api.router())
    return app


class _PlainPaths:
    """ASGI middleware that reads `//v1/models/` and `/v1/v1/models` as `/v1/models`: clients join URLs in many ways.

    A redirect would not do: many clients do not follow it, or not with their body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = re.sub("^(/v1)+/", "/v1/", re.sub("/+", "/", scope.get("path", ""))).rstrip("/")
        if scope["type"] == "http" and plain.startswith(_API_PATHS):
            scope = dict(scope, path=plain)
        await self.app(scope, receive, send)


class Api:
    """The routes, with a `Batcher` of up to `slots` texts for each model."""

    def __init__(self, models: Sequence[LoadedModel], slots: int, metrics: Metrics) -> None:
        self.models = {model.name: model for model in models}
        self.metrics = metrics
        self.batchers = {model.name: Batcher(model, slots, metrics) for model in models}

    def close(self) -> None:
        """Stop all generation. Unfinished requests get an error."""
        for batcher in self.batchers.values():
            batcher.close()

    def router(self) -> APIRouter:
        """All routes, with their errors in the schema."""
        errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in ("4XX", "5XX")}
        router = APIRouter(route_class=StrictRoute, responses=errors)
        routes: tuple[tuple[str, str, Callable[..., Any]], ...] = (
            ("GET", "/health", self.health),
            ("GET", "/metrics", self.show_metrics),
            ("GET", "/v1/models", self.list_models),
            ("GET", "/v1/models/{model:path}", self.show_model),
            ("POST", "/v1/completions", self.complete),
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/v1/tokenize", self.tokenize),
            ("POST", "/v1/detokenize", self.detokenize),
            ("GET", "/v1/tokenizer_info", self.tokenizer_info),
        )
        for method, path, route in routes:
            router.add_api_route(path, route, methods=[method], response_model=None)
            # Some clients have no /v1 in their base URL, and harnesses look for the tokenizer without it.
            aliases = {path, path.removeprefix("/v1")}
            for alias in aliases if method == "GET" else aliases - {path}:
                methods = [method, "HEAD"] if method == "GET" else [method]
                router.add_api_route(alias, route, methods=methods, response_model=None, include_in_schema=False)
        return router

    async def health(self) -> JSONResponse:
        """200 if every model's engine is running, else 503."""
        alive = all(batcher.alive for batcher in self.batchers.values())
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def show_metrics(self) -> Response:
        """Metrics for Prometheus."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def list_models(self) -> JSONResponse:
        """All models of this server."""
        return JSONResponse({"object": "list", "data": [model.card() for model in self.models.values()]})

    async def show_model(self, model: str) -> JSONResponse:
        """One model."""
        return JSONResponse(self.find(model).card())

    async def tokenize(self, body: TokenizeRequest) -> JSONResponse:
        """The token ids of a text, without special tokens."""
        model = self.find(body.model)
        ids = await asyncio.to_thread(model.tokenize, body.prompt)
        return JSONResponse({"count": len(ids), "tokens": ids, "max_model_len": model.context})

    async def detokenize(self, body: DetokenizeRequest) -> JSONResponse:
        """The text of token ids."""
        tokenizer = self.find(body.model).tokenizer
        try:
            return JSONResponse({"prompt": tokenizer.decode(body.tokens)})
        except ValueError as error:
            raise ApiError(400, str(error), param="tokens") from None

    async def tokenizer_info(self, model: str | None = None) -> JSONResponse:
        """What an evaluation harness has to know of the tokenizer."""
        if model is None and len({each.tokenizer for each in self.models.values()}) > 1:
            raise ApiError(
                400, "The models of this server have different tokenizers. Add ?model=NAME to the URL, or serve one "
                "model on each port: harnesses cannot say which one they mean.", param="model",
            )  # fmt: skip
        return JSONResponse(self.find(model).tokenizer_card())

    async def complete(self, body: CompletionRequest, http: HttpRequest) -> Response:
        """Continue prompts."""
        model, prompts = self.find(body.model), body.prompts
        if len(prompts) * body.n > MAX_SEQUENCES:
            raise ApiError(400, f"Prompts times n must be at most {MAX_SEQUENCES}.", param="n")
        ids = await asyncio.to_thread(lambda: [model.prompt_ids(prompt) for prompt in prompts])
        echo = [_text_of(model, prompt) if body.echo else "" for prompt in prompts for _ in range(body.n)]
        if sum(map(len, echo)) > MAX_ECHO:
            raise ApiError(400, f"echo would repeat more than {MAX_ECHO:,} characters.", param="echo")
        top = body.logprobs if body.echo else None  # for the tokens of the prompts
        scored = 0 if top is None else sum(len(each) for each, prompt in zip(ids, prompts, strict=True) if prompt)
        _check_size(body.n * (len(prompts) * body.max_tokens + scored), body.logprobs)
        form = ResponseFormat(
            False, model.name, model.tokenizer, sum(map(len, ids)), body.logprobs is not None, echo
        )  # fmt: skip
        if scored and top is not None:
            form.echo_tokens = await asyncio.to_thread(_score_prompts, model, prompts, ids, top, body.n)
        job = _job(body, model, ids, body.max_tokens, body.logprobs)
        return await self.generate(job, form, body, http)

    async def chat(self, body: ChatRequest, http: HttpRequest) -> Response:
        """Write the next message of a chat."""
        model = self.find(body.model)
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
        tools = body.tools if body.tool_choice == "auto" else []
        ids = await asyncio.to_thread(model.chat_ids, body.messages, tools)
        top = body.top_logprobs if body.logprobs else None
        room = MAX_OUTPUT // (body.n * (1 + body.top_logprobs))
        max_tokens = body.max_completion_tokens or body.max_tokens or min(model.context, room)
        _check_size(body.n * max_tokens, top)
        chat = model.chat_tokenizer
        if chat:
            max_tokens = min(max_tokens, model.context - len(ids))
        if chat and chat.call_id is not None and body.tool_choice == "none":
            body.logit_bias = {**body.logit_bias, str(chat.call_id): -100.0}
        form = ResponseFormat(True, model.name, model.tokenizer, len(ids), body.logprobs, [""] * body.n)
        job = _job(body, model, [ids], max_tokens, top)
        job.chat = body.tool_choice == "auto"
        return await self.generate(job, form, body, http)

    async def generate(self, job: Job, form: ResponseFormat, body: Generation, http: HttpRequest) -> Response:
        """Submit a job and respond with its texts, complete or streamed. Raises ApiError (429) if the queue is full."""
        if job.texts:
            self.batchers[form.model].submit(job)
        self.metrics.prompt_tokens.labels(form.model).inc(form.prompt_tokens)
        steps = job.chunks() if job.texts else _nothing_new(len(form.echo))
        if body.stream:
            return _Stream(stream_response(form, steps, body.stream_options.include_usage), job)
        try:
            return JSONResponse(await _unless_disconnected(http, complete_response(form, steps)))
        finally:
            job.cancelled = True

    def find(self, name: str | None) -> LoadedModel:
        """The model with this name. None: the first one."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise ApiError(
                404, f"There is no model {name[:100]!r}. /v1/models lists them.", param="model", code="model_not_found"
            )
        return self.models[name]


class _Stream(StreamingResponse):
    """Server-sent events of a job, which is cancelled when the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], job: Job) -> None:
        super().__init__(events, headers={"X-Accel-Buffering": "no"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancelled = True


async def _unless_disconnected(http: HttpRequest, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    async def disconnect() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    task, disconnected = asyncio.create_task(work), asyncio.create_task(disconnect())
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise client_disconnected()
        return task.result()
    finally:
        task.cancel()
        disconnected.cancel()


async def _nothing_new(n: int) -> AsyncIterator[Chunks]:
    """The ends of `n` texts with max_tokens 0."""
    yield [(i, Chunk("", [], "length")) for i in range(n)]


def _check_size(tokens: int, top: int | None) -> None:
    """Raise ApiError if a response of `tokens` tokens, each with `top` log probabilities, would be too large."""
    entries = tokens * (1 + (top or 0))
    if entries > MAX_OUTPUT:
        raise ApiError(
            400, f"This request could return {entries:,} tokens and log probabilities, but the limit is "
            f"{MAX_OUTPUT:,}: lower max_tokens, n or logprobs, or send fewer prompts at once.", param="max_tokens",
        )  # fmt: skip


def _score_prompts(
    model: LoadedModel, prompts: Sequence[str | list[int]], ids: Sequence[list[int]], top: int, n: int
) -> list[list[GeneratedToken]]:
    """For each of the n choices of each prompt: the prompt's tokens with log probabilities. None for empty prompts."""
    scored = [model.score(each, top) if prompt else [] for each, prompt in zip(ids, prompts, strict=True)]
    return [tokens for tokens in scored for _ in range(n)]


def _text_of(model: LoadedModel, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)


def _job(body: Generation, model: LoadedModel, prompts: list[list[int]], max_tokens: int, top: int | None) -> Job:
    """The texts of a request: `n` for each prompt. None if `max_tokens` is 0."""
    if max_tokens == 0:
        return Job([])
    sampling = [_sampling(body, model, choice) for choice in range(body.n)]
    ends = model.tokenizer.end_ids
    # The engine reads only the last window of a prompt, so the rest is not kept in the queue.
    prompts = [ids[window_start(len(ids) - 1, model.context) :] for ids in prompts]
    return Job([Request(ids, max_tokens, each, ends, top) for ids in prompts for each in sampling], body.stops)


def _sampling(body: Generation, model: LoadedModel, choice: int) -> Sampling:
    """The sampling settings of one of the `n` choices. Each has the next seed."""
    bias = {int(id): value for id, value in body.logit_bias.items()}
    if bias and max(bias) >= model.tokenizer.vocab_size:
        raise ApiError(400, f"Token ids must lie in [0, {model.tokenizer.vocab_size}).", param="logit_bias")
    names = {field.name for field in dataclasses.fields(Sampling)} - {"seed", "logit_bias"}
    settings = {name: getattr(body, name) for name in names}
    seed = None if body.seed is None else (body.seed + choice) % 2**63
    if body.top_p == 0:  # nothing but the most likely token
        settings |= {"top_p": 1.0, "top_k": 1}
    return Sampling(**settings, seed=seed, logit_bias=bias)
