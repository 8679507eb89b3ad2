"""A model as it is served: read into memory once, with what turns requests into tokens and tells who it is."""

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
from groundling.inference.engine import GeneratedToken, read
from groundling.inference.stream import start_ids
from groundling.model.gpt import GPT
from groundling.run.run import Run
from groundling.web.errors import ApiError
from groundling.web.schemas import Message

TEMPLATE = "chat_template.jinja"
"""The file in a run's folder that says how its chats are written; Hugging Face's name and form."""

NOT_FOR_CHAT = (
    "Not tuned for chat: the messages are put one below the other, without their roles, and the model goes on writing."
)


class LoadedModel:
    """Everything is read when it is made: the run's files may change or go afterwards."""

    def __init__(self, run: Run, name: str, precision: Precision, unknown: Unknown) -> None:
        self.name = name
        variants = ModelVariants(run.model)
        self.model: GPT = variants.model(precision)
        self.decoder = variants.decoder(precision)
        self.parameters = sum(parameter.numel() for parameter in run.model.parameters())
        self.tokenizer: Tokenizer = run.tokenizer
        self.step = run.step
        self.created = _seconds(run.record.created)
        self._unknown = unknown
        self._reading = threading.Lock()
        self._documents = run.record.corpus.documents
        self._template = _template(run.folder)

    @property
    def context(self) -> int:
        """How many tokens it looks back at."""
        return self.model.config.block_size

    @property
    def bytes_a_text(self) -> int:
        """What the keys and values of one text take: of a whole window, and of half of the next."""
        model = self.model.config
        return 3 * 4 * model.n_layer * model.kv_heads * model.head_dim * model.block_size

    def card(self) -> dict[str, Any]:
        """Its entry in `/v1/models`: OpenAI's fields, and more."""
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "groundling",
            "context": self.context, "vocab_size": self.tokenizer.vocab_size, "parameters": self.parameters,
            "step": self.step, "chat": self._template is not None,
            "note": None if self._template else NOT_FOR_CHAT,
        }  # fmt: skip

    def describe(self) -> str:
        """A line for the terminal."""
        chat = "tuned for chat" if self._template else "not tuned for chat"
        return f"{self.parameters:,} parameters, context {self.context:,}, step {self.step:,}, {chat}"

    def encode(self, text: str, param: str = "prompt") -> list[int]:
        """The ids of a text. Raises ApiError for one that the model cannot read."""
        try:
            return self.tokenizer.encode(text, self._unknown)
        except UnknownText as error:
            raise ApiError(400, str(error), param=param) from None

    def prompt(self, prompt: str | Sequence[int]) -> list[int]:
        """The ids that a text is generated from, at least one. Raises ApiError for those that the model has not."""
        if isinstance(prompt, str):
            return self.encode(prompt) or start_ids(self.tokenizer, self._documents)
        if max(prompt) >= self.tokenizer.vocab_size:
            raise ApiError(400, f"Token ids must lie in [0, {self.tokenizer.vocab_size}).", param="prompt")
        return list(prompt)

    def read(self, ids: Sequence[int], logprobs: int) -> list[GeneratedToken]:
        """The tokens of a prompt with their log probabilities; one prompt at a time, beside what is written."""
        with self._reading:
            return read(self.model, ids, logprobs)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that a chat is continued from. Raises ApiError for one that the run's template does not take."""
        if self._template is None:
            text = "\n".join(message.text for message in messages)
        else:
            turns = [{"role": message.role, "content": message.text} for message in messages]
            try:
                text = self._template.render(messages=turns, add_generation_prompt=True, eos_token=END_OF_TEXT)
            except (jinja2.TemplateError, TypeError, ArithmeticError) as error:
                raise ApiError(400, f"The chat template refuses these messages: {error}", param="messages") from None
        return self.encode(text, "messages") or start_ids(self.tokenizer, self._documents)


def _open_run(run: Run, name: str, precision: Precision, unknown: Unknown) -> LoadedModel:
    """Read a run into memory. One in training may delete the checkpoint that is being read: then the next is read."""
    for attempt in range(3):
        checkpoint = run.checkpoint
        try:
            return LoadedModel(Run(run.folder, checkpoint), name, precision, unknown)
        except (OSError, ValueError):
            if attempt == 2 or checkpoint == run.checkpoint:
                raise
    raise AssertionError


def open_runs(runs: Sequence[Run], precision: Precision = "float32", unknown: Unknown = "error") -> list[LoadedModel]:
    """Read runs into memory. Raises ValueError where two would have one name, or for one without a checkpoint."""
    names = [_name(run) for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two of the models would be called {name!r}: serve them at two ports.")
    return [_open_run(run, name, precision, unknown) for run, name in zip(runs, names, strict=True)]


def _name(run: Run) -> str:
    """The run's own, and for a chosen checkpoint with the checkpoint's."""
    return f"{run.name}@{run.chosen.name}" if run.chosen else run.name


def _template(folder: Path) -> jinja2.Template | None:
    """The run's chat template. It may come from a stranger with the run, so it runs in a sandbox."""
    path = folder / TEMPLATE
    if not path.is_file():
        return None

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except jinja2.TemplateError as error:
        raise ValueError(f"{path} is no chat template: {error}") from None


def _seconds(created: str | None) -> int:
    try:
        return int(datetime.fromisoformat(created or "").timestamp())
    except ValueError:
        return 0
