"""The fields of requests, with types and limits, which are checked before anything is computed or allocated.

Names and meanings are OpenAI's, plus `top_k`, `min_p` and `repetition_penalty`, which other servers have too. `null`
means not given. OpenAI's fields that do not change the text are ignored. Those that would change it and are not
supported are rejected, except with a value that changes nothing. Unknown ones are rejected.
"""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Any, Literal

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import from_json
from starlette.datastructures import Headers

MAX_PROMPTS = 64
MAX_PROMPT_TOKENS = 100_000
MAX_SEQUENCES = 64
"""Prompts times `n`."""
MAX_TOKENS = MAX_OUTPUT = 2**16
"""Tokens and log probabilities of a response: sequences x `max_tokens` x (1 + `logprobs`). They stay in memory until
the client has read them."""
MAX_ECHO = 1 << 20
"""Characters of the prompts that a response repeats."""
MAX_STOPS = 8
MAX_STOP_LENGTH = 256
MAX_MESSAGES = 512
MAX_TOOLS = 128
MAX_FIELDS = 1024
"""Fields of any object, and so entries of `logit_bias`."""

_IGNORED = {
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "prompt_cache_breakpoint", "cache_control", "safety_identifier", "prediction", "reasoning_effort",
}  # fmt: skip
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((), "must be equal to n: this server does not generate more texts than it returns"),
    "suffix": (("",), "is not supported: models only continue a text"),
    "functions": (([],), "is not supported. Use tools"),
    "function_call": (("none", "auto"), "must be none or auto. Use tools and tool_choice"),
    "parallel_tool_calls": ((True, False), "must be true or false, and has no effect"),
    **dict.fromkeys(("image_url", "input_audio", "file"), ((), "is not supported: models read text only")),
    "annotations": (([],), "is not supported: models read text only"),
    "response_format": (({"type": "text"},), "must have the type text: the output cannot be forced into JSON"),
    "modalities": ((["text"],), 'must be ["text"]: models write text only'),
    "audio": ((), "is not supported: models write text only"),
    "moderation": ((), "is not supported: nothing is moderated"),
    "refusal": (("",), "is not supported: models read text only"),
    "verbosity": (("medium",), "must be medium: models cannot be told how much to write. Use max_tokens"),
    "web_search_options": ((), "is not supported: models do not search the web"),
}
"""Fields that are not supported: the values that change nothing, and what to say of the others."""


def _limit_fields(given: Any) -> Any:
    if isinstance(given, dict) and len(given) > MAX_FIELDS:  # before pydantic makes an error for each wrong one
        raise ValueError(f"Object should have at most {MAX_FIELDS} items, not {len(given):,}")
    return given


def _is_neutral(name: str, value: Any, body: dict[str, Any]) -> bool:
    """Whether a field that is not supported changes nothing."""
    if name == "best_of":
        return bool(value == (body.get("n") or 1))
    if name == "functions" and body.get("function_call") == "none":
        return True
    return name in UNSUPPORTED and value in UNSUPPORTED[name][0]


class Body(BaseModel):
    """A JSON body with strict types: neither "1" nor true is a number."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        _limit_fields(given)
        return {
            name: value for name, value in given.items()
            if value is not None and name not in _IGNORED and not _is_neutral(name, value, given)
        }  # fmt: skip


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(max_length=1 << 20)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPT_TOKENS)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_FIELDS),
    BeforeValidator(_limit_fields),
]


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False
    """Ignored: nothing is padded."""


class Generation(Body):
    """The fields that completions and chats share."""

    model: str | None = Field(None, max_length=512, description="A name in /v1/models. Default: the first one.")
    n: int = Field(1, ge=1, le=MAX_SEQUENCES)
    temperature: float = Field(1.0, ge=0, le=100, description="0: greedy.")
    top_p: float = Field(1.0, ge=0, le=1, description="0: greedy, as at OpenAI.")
    top_k: int = Field(0, ge=0, le=2**31, description="0: off.")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: LogitBias = {}
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=MAX_STOPS)] = Field([])
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(Generation):
    """POST /v1/completions"""

    prompt: (
        Text
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    ) = ""
    max_tokens: int = Field(16, ge=0, le=MAX_TOKENS, description="0, with echo: only score the prompt.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Log probabilities of this many most likely tokens.")
    echo: bool = Field(False, description="Begin the text with the prompt.")

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # one prompt of token ids
        return list(self.prompt)


class TextPart(Body):
    type: Literal["text"]
    text: Text


def _json_object(text: str) -> str:
    try:
        value = from_json(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError("arguments must be the JSON of an object")
    return text


Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class CalledFunction(Body):
    name: Name
    arguments: Annotated[Text, AfterValidator(_json_object)] = Field(description="The JSON of an object.")


class ToolCall(Body):
    id: str = Field(max_length=64)
    type: Literal["function"] = "function"
    function: CalledFunction


class Function(Body):
    name: Name
    description: Text = ""
    parameters: Annotated[dict[str, Any], Field(max_length=MAX_FIELDS)] = Field({}, description="JSON Schema.")
    strict: bool = Field(False, description="Has no effect.")


class Tool(Body):
    type: Literal["function"]
    function: Function


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_MESSAGES)]
    name: str | None = Field(None, max_length=64, description="Ignored.")
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=MAX_TOOLS)] = Field(
        [], description="Of the assistant."
    )
    tool_call_id: str | None = Field(None, max_length=64, description="Of a tool's result.")

    @model_validator(mode="before")
    @classmethod
    def _calls_need_no_content(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("tool_calls") and given.get("content") is None:
            return given | {"content": ""}
        return given

    @model_validator(mode="after")
    def _check_role(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"only the assistant has tool_calls, not the role {self.role}")
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


def _in_order(messages: list[Message]) -> list[Message]:
    """The results of a turn's calls in the order of the calls, since a model sees no ids."""
    order = {call.id: i for i, call in enumerate(call for message in messages for call in message.tool_calls)}
    known, ordered = set[str | None]((None,)), list[Message]()
    for is_result, group in groupby(messages, key=lambda message: message.role == "tool"):
        part = list(group)
        if is_result and not {message.tool_call_id for message in part} <= known:
            raise ValueError("a tool_call_id is not the id of a call in a message before it")
        known |= {call.id for message in part for call in message.tool_calls}
        ordered += sorted(part, key=lambda message: order.get(message.tool_call_id or "", 0)) if is_result else part
    return ordered


def _check_tool_choice(given: Any) -> Any:
    if given not in ("none", "auto"):
        raise ValueError("it must be none or auto: a model cannot be forced to call a tool")
    return given


class ChatRequest(Generation):
    """POST /v1/chat/completions"""

    messages: Annotated[
        list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES), AfterValidator(_in_order)
    ]
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="Default: the context length.")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="OpenAI's newer name of max_tokens."
    )
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)] = []
    tool_choice: Annotated[Literal["none", "auto"], BeforeValidator(_check_tool_choice)] = Field(
        "auto", description="A call cannot be forced."
    )


class TokenizeRequest(Body):
    """POST /tokenize"""

    model: str | None = Field(None, max_length=512)
    prompt: Text = Field(description="<|endoftext|> alone is the token that an empty prompt starts from.")
    add_special_tokens: bool = Field(False, description="Ignored: prompts get no special tokens.")


class DetokenizeRequest(Body):
    """POST /detokenize"""

    model: str | None = Field(None, max_length=512)
    tokens: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_PROMPT_TOKENS)]


class _StrictRequest(Request):
    async def json(self) -> Any:
        # This parser rejects NaN, invalid UTF-8, lone surrogates, and nesting deeper than 200.
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"The body is not valid JSON: {error}.") from None


class StrictRoute(APIRoute):
    """A route that parses JSON strictly."""

    def get_route_handler(self) -> Any:
        """FastAPI's handler, which gets a request whose JSON is parsed strictly."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if request.method == "POST":
                _check_kind(request.headers)
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


def _check_kind(headers: Headers) -> None:
    """Raise HTTPException for a body that is not plain JSON.

    A page of another site cannot send JSON's Content-Type without asking first.
    """
    if (encoding := headers.get("content-encoding", "identity")) != "identity":
        raise HTTPException(415, f"Content-Encoding {encoding[:20]!r} is not supported. Send the body uncompressed.")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(400, "The body must be JSON, sent with the header `Content-Type: application/json`.")
