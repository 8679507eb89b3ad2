"""A model in memory, ready to serve: weights, tokenizer and chat template."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from groundling.acceleration.model_variants import ModelVariants
from groundling.acceleration.precision import Precision
from groundling.data.tokenizers.base import END_OF_TEXT, Tokenizer, Unknown, UnknownText
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.inference.chat import chat_messages
from groundling.inference.engine import GeneratedToken, read
from groundling.inference.stream import start_ids
from groundling.model.gpt import GPT
from groundling.run.run import Run
from groundling.storage.safe_read import LARGEST_JSON, read_bytes
from groundling.web.errors import ApiError
from groundling.web.schemas import Message, Tool

TEMPLATE = "chat_template.jinja"
"""The chat template in a run's folder, in Hugging Face's format. Runs that were tuned on conversations need none."""

NOT_FOR_CHAT = "Not tuned for chat: it continues the text of the messages, without their roles."


class LoadedModel:
    """Everything is read when the object is made. The run's files may change or disappear afterwards."""

    def __init__(self, run: Run, name: str, precision: Precision, unknown: Unknown) -> None:
        self.name = name
        run.check_writes()
        variants = ModelVariants(run.model)
        self.model: GPT = variants.model(precision)
        self.decoder = variants.decoder(precision)
        self.parameters = sum(parameter.numel() for parameter in run.model.parameters())
        self.tokenizer: Tokenizer = run.tokenizer
        self.step = run.step
        self.created = _timestamp(run.record.created)
        self._unknown = unknown
        self._scoring = threading.Lock()
        self._start = start_ids(run.tokenizer, run.record.corpus.documents)
        self.chat_tokenizer = run.tokenizer if isinstance(run.tokenizer, ChatTokenizer) else None
        self._template_text = None if self.chat_tokenizer else _template_text(run.folder)
        self._template = _template(self._template_text, run.folder)

    @property
    def context(self) -> int:
        """The context length in tokens."""
        return self.model.config.block_size

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache of one text: a whole window, and half of the next one."""
        model = self.model.config
        return 3 * 4 * model.n_layer * model.kv_heads * model.head_dim * model.block_size

    @property
    def chats(self) -> bool:
        """Whether it was tuned for chat."""
        return bool(self.chat_tokenizer or self._template)

    def card(self) -> dict[str, Any]:
        """The model's entry in `/v1/models`: OpenAI's fields, and more."""
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "groundling",
            "context": self.context, "vocab_size": self.tokenizer.vocab_size, "parameters": self.parameters,
            "step": self.step, "chat": self.chats, "note": None if self.chats else NOT_FOR_CHAT,
        }  # fmt: skip

    def describe(self) -> str:
        """One line for the terminal."""
        chat = "tuned for chat" if self.chats else "not tuned for chat"
        return f"{self.parameters:,} parameters, context {self.context:,}, step {self.step:,}, {chat}"

    def encode(self, text: str, param: str = "prompt") -> list[int]:
        """The token ids of a text. Raises ApiError if the tokenizer cannot encode it."""
        try:
            return self.tokenizer.encode(text, self._unknown)
        except UnknownText as error:
            raise ApiError(400, str(error), param=param) from None

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text. `<|endoftext|>` alone gives the token that an empty prompt starts from.

        In this way an evaluation harness looks up the token to put before a text.
        """
        return list(self._start) if text == END_OF_TEXT else self.encode(text)

    def tokenizer_card(self) -> dict[str, Any]:
        """What `/tokenizer_info` says, with the names of Hugging Face's `tokenizer_config.json`."""
        template = self.chat_tokenizer.template if self.chat_tokenizer else self._template_text
        return {
            "tokenizer_class": type(self.tokenizer).__name__, "model_max_length": self.context,
            "vocab_size": self.tokenizer.vocab_size, "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT,
            "pad_token": None, "chat_template": template,
        }  # fmt: skip

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The token ids of a prompt, at least one. Raises ApiError for text or ids that the tokenizer does not have."""
        if isinstance(prompt, str):
            fitted, _ = self.tokenizer.fit_prompt(prompt)
            return [*self.tokenizer.start_ids, *self.encode(fitted)] or self._start
        if max(prompt) >= self.tokenizer.vocab_size:
            raise ApiError(400, f"Token ids must lie in [0, {self.tokenizer.vocab_size}).", param="prompt")
        return list(prompt)

    def score(self, ids: Sequence[int], top: int) -> list[GeneratedToken]:
        """The tokens of a prompt with their log probabilities, and the `top` most likely ones at each position.

        It runs beside generation, for one prompt at a time.
        """
        with self._scoring:
            return read(self.model, ids, top)

    def chat_ids(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """The token ids of a chat, ready for the next message. Raises ApiError if it cannot be rendered, or is longer
        than the context."""
        if self.chat_tokenizer is None:
            return self._text_chat_ids(messages, tools)
        given, defined = ([each.model_dump(exclude_unset=True) for each in part] for part in (messages, tools))
        try:
            turns = chat_messages(self.chat_tokenizer, given, defined, self._unknown)
            ids = self.chat_tokenizer.render(turns, True, defined).ids
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None
        if len(ids) >= self.context:
            raise ApiError(
                400, f"This model's maximum context length is {self.context:,} tokens. However, your messages have "
                f"{len(ids):,} tokens. Shorten them.", param="messages", code="context_length_exceeded",
            )  # fmt: skip
        return ids

    def _text_chat_ids(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        if tools or any(message.tool_calls for message in messages):
            name = "tools" if tools else "messages"
            raise ApiError(
                400, f"The model {self.name} was not tuned on conversations, so it calls no tools.", param=name
            )
        if self._template is None:
            text = "\n".join(message.text for message in messages)
        else:
            roles = [{"role": message.role, "content": message.text} for message in messages]
            try:
                text = self._template.render(messages=roles, add_generation_prompt=True, eos_token=END_OF_TEXT)
            except Exception as error:  # a template can raise anything
                raise ApiError(400, f"The chat template rejects these messages: {error}", param="messages") from None
        return [*self.tokenizer.start_ids, *self.encode(text, "messages")] or self._start


def open_runs(runs: Sequence[Run], precision: Precision = "float32", unknown: Unknown = "error") -> list[LoadedModel]:
    """Load runs into memory. Raises ValueError if two would have the same name, or one has no checkpoint."""
    names = [f"{run.name}@{run.chosen.name}" if run.chosen else run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two models have the name {name!r}. Serve them on two ports.")
    return [_open_run(run, name, precision, unknown) for run, name in zip(runs, names, strict=True)]


def _open_run(run: Run, name: str, precision: Precision, unknown: Unknown) -> LoadedModel:
    """Load a run into memory. If its training deletes the checkpoint meanwhile, try again with the next one."""
    for attempt in range(3):
        checkpoint = run.checkpoint
        try:
            return LoadedModel(Run(run.folder, checkpoint), name, precision, unknown)
        except (OSError, ValueError):
            if attempt == 2 or checkpoint == run.checkpoint:
                raise
    raise AssertionError("unreachable")


def _template_text(folder: Path) -> str | None:
    path = folder / TEMPLATE
    if not path.is_file():
        return None
    try:
        return read_bytes(path, LARGEST_JSON).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a valid chat template: {error}") from None


def _template(text: str | None, folder: Path) -> jinja2.Template | None:
    """The run's chat template. A stranger may have written it, so it runs in a sandbox."""
    if text is None:
        return None

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(text)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ValueError(f"{folder / TEMPLATE} is not a valid chat template: {error}") from None


def _timestamp(created: str | None) -> int:
    """Seconds since 1970. 0 if unknown."""
    try:
        return int(datetime.fromisoformat(created or "").timestamp())
    except ValueError:
        return 0
