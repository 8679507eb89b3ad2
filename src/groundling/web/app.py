"""The routes, and what each request becomes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from groundling import __version__
from groundling.config import Sampling
from groundling.inference.engine import GeneratedToken, Request, window_start
from groundling.web import errors
from groundling.web.batching import Batcher, Job
from groundling.web.errors import ApiError, ErrorBody, client_left
from groundling.web.loaded_model import LoadedModel
from groundling.web.metrics import CONTENT_TYPE_LATEST, Metrics
from groundling.web.responses import Form, streamed, whole
from groundling.web.schemas import (
    MAX_ECHO,
    MAX_SEQUENCES,
    MAX_WRITTEN,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Generation,
    StrictRoute,
    TokenizeRequest,
)


def create_app(api: Api) -> FastAPI:
    """The routes as an app, to which pages can be added. `Guard` has to stand around it."""
    app = FastAPI(
        title="groundling", version=__version__, summary="Language models behind the API that OpenAI's clients speak.",
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    errors.install(app)
    app.include_router(api.router())
    return app


class Api:
    """What the routes do, with a thread for each model that writes up to `slots` texts at a time."""

    def __init__(self, models: Sequence[LoadedModel], slots: int, metrics: Metrics) -> None:
        self.models = {model.name: model for model in models}
        self.metrics = metrics
        self.batchers = {model.name: Batcher(model, slots, metrics) for model in models}

    def close(self) -> None:
        """End the threads. Whoever still waits for a text is told."""
        for batcher in self.batchers.values():
            batcher.close()

    def router(self) -> APIRouter:
        """Paths and methods. Errors of every kind have one shape."""
        wrong: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in ("4XX", "5XX")}
        router = APIRouter(route_class=StrictRoute, responses=wrong)
        reads: dict[str, Callable[..., Any]] = {
            "/health": self.health, "/metrics": self.show_metrics, "/v1/models": self.list_models,
            "/v1/models/{model:path}": self.show_model,
        }  # fmt: skip
        for path, route in reads.items():
            router.add_api_route(path, route, methods=["GET"], response_model=None)
        asks: dict[str, Callable[..., Any]] = {
            "/v1/completions": self.complete, "/v1/chat/completions": self.chat, "/v1/tokenize": self.tokenize,
            "/v1/detokenize": self.detokenize,
        }  # fmt: skip
        for path, route in asks.items():
            router.add_api_route(path, route, methods=["POST"], response_model=None)
        return router

    async def health(self) -> JSONResponse:
        """Whether each model's engine is there to answer."""
        alive = all(batcher.alive for batcher in self.batchers.values())
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def show_metrics(self) -> Response:
        """Figures for Prometheus."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def list_models(self) -> JSONResponse:
        """All models that are served."""
        return JSONResponse({"object": "list", "data": [model.card() for model in self.models.values()]})

    async def show_model(self, model: str) -> JSONResponse:
        """One of them."""
        return JSONResponse(self.find(model).card())

    async def tokenize(self, body: TokenizeRequest) -> JSONResponse:
        """The token ids of a text, without any that would begin it."""
        model = self.find(body.model)
        ids = await asyncio.to_thread(model.encode, body.prompt)
        return JSONResponse({"count": len(ids), "tokens": ids, "max_model_len": model.context})

    async def detokenize(self, body: DetokenizeRequest) -> JSONResponse:
        """The text of token ids."""
        tokenizer = self.find(body.model).tokenizer
        try:
            return JSONResponse({"prompt": tokenizer.decode(body.tokens)})
        except ValueError as error:
            raise ApiError(400, str(error), param="tokens") from None

    async def complete(self, body: CompletionRequest, http: HttpRequest) -> Response:
        """Texts that continue prompts."""
        model, prompts = self.find(body.model), body.prompts
        if len(prompts) * body.n > MAX_SEQUENCES:
            raise ApiError(400, f"At most {MAX_SEQUENCES} texts a request (prompts times n).", param="n")
        ids = await asyncio.to_thread(lambda: [model.prompt(prompt) for prompt in prompts])
        echo = [_text_of(model, prompt) if body.echo else "" for prompt in prompts for _ in range(body.n)]
        if sum(map(len, echo)) > MAX_ECHO:
            raise ApiError(400, f"At most {MAX_ECHO:,} characters a request are repeated.", param="echo")
        top = body.logprobs if body.echo else None  # what is told of the prompts' own tokens
        scored = 0 if top is None else sum(len(each) for each, prompt in zip(ids, prompts, strict=True) if prompt)
        _check_size(body.n * (len(prompts) * body.max_tokens + scored), body.logprobs)
        form = Form(False, model.name, model.tokenizer, sum(map(len, ids)), body.logprobs is not None, echo)
        if scored and top is not None:
            form.echoed = await asyncio.to_thread(_read_all, model, prompts, ids, top, body.n)
        return await self.answer(body, model, ids, body.max_tokens, body.logprobs, form, http)

    async def chat(self, body: ChatRequest, http: HttpRequest) -> Response:
        """The next message of a chat."""
        model = self.find(body.model)
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        ids = await asyncio.to_thread(model.chat_prompt, body.messages)
        max_tokens = body.max_completion_tokens or body.max_tokens or min(model.context, _room(body))
        form = Form(True, model.name, model.tokenizer, len(ids), body.logprobs, [""] * body.n)
        top = body.top_logprobs if body.logprobs else None
        _check_size(body.n * max_tokens, top)
        return await self.answer(body, model, [ids], max_tokens, top, form, http)

    async def answer(
        self, body: Generation, model: LoadedModel, prompts: list[list[int]], max_tokens: int, top: int | None,
        form: Form, http: HttpRequest,
    ) -> Response:  # fmt: skip
        """Order the texts, and answer with them, whole or as they come. Raises ApiError (429) for a full queue."""
        sampling = [_sampling(body, model, choice) for choice in range(body.n)]
        # What the engine would not read is not kept while it waits.
        prompts = [ids[window_start(len(ids) - 1, model.context) :] for ids in prompts]
        end = model.tokenizer.end_of_text_id
        order = Job([Request(ids, max_tokens, each, end, top) for ids in prompts for each in sampling], body.stops)
        self.batchers[model.name].submit(order)
        self.metrics.prompt_tokens.labels(model.name).inc(form.prompt_tokens)
        if body.stream:
            return _Stream(streamed(form, order.pieces(), body.stream_options.include_usage), order)
        try:
            return JSONResponse(await _unless_gone(http, whole(form, order.pieces())))
        finally:
            order.left = True

    def find(self, name: str | None) -> LoadedModel:
        """The model of this name; the first if there is no name."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise ApiError(404, f"There is no model {name[:100]!r} here.", param="model", code="model_not_found")
        return self.models[name]


class _Stream(StreamingResponse):
    """Server-sent events of an order, which is given up when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], order: Job) -> None:
        super().__init__(events, headers={"X-Accel-Buffering": "no"})
        self._order = order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._order.left = True


async def _unless_gone(http: HttpRequest, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    async def left() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise client_left()
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def _check_size(tokens: int, top: int | None) -> None:
    """Raise ApiError for more tokens, each with so many log probabilities, than one request may hold."""
    entries = tokens * (1 + (top or 0))
    if entries > MAX_WRITTEN:
        raise ApiError(
            400, f"That asks for {entries:,} tokens and log probabilities, and a request gets at most "
            f"{MAX_WRITTEN:,}: lower max_tokens, n or logprobs.", param="max_tokens",
        )  # fmt: skip


def _room(body: ChatRequest) -> int:
    """The most tokens that each answer to a request may have."""
    return MAX_WRITTEN // (body.n * (1 + (body.top_logprobs or 0)))


def _read_all(
    model: LoadedModel, prompts: Sequence[str | list[int]], ids: Sequence[list[int]], logprobs: int, n: int
) -> list[list[GeneratedToken]]:
    """The tokens of each prompt that is repeated, for each of its choices; none where there was no prompt."""
    read = [model.read(each, logprobs) if prompt else [] for each, prompt in zip(ids, prompts, strict=True)]
    return [tokens for tokens in read for _ in range(n)]


def _text_of(model: LoadedModel, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)


def _sampling(body: Generation, model: LoadedModel, choice: int) -> Sampling:
    """How one of the `n` choices is drawn: each has the next seed."""
    bias = {int(id): value for id, value in body.logit_bias.items()}
    if bias and max(bias) >= model.tokenizer.vocab_size:
        raise ApiError(400, f"Token ids must lie in [0, {model.tokenizer.vocab_size}).", param="logit_bias")
    names = {field.name for field in dataclasses.fields(Sampling)} - {"seed", "logit_bias"}
    knobs = {name: getattr(body, name) for name in names}
    seed = None if body.seed is None else (body.seed + choice) % 2**63
    return Sampling(**knobs, seed=seed, logit_bias=bias)
