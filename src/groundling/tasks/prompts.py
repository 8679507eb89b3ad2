"""Prompts whose replies can be rewarded: those of a task with verifiable rewards, or of a file with a reward model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from groundling.data.conversations import Message
from groundling.data.examples import Dataset
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.environments import find_environment
from groundling.environments.environment import Item, Part
from groundling.inference.calling import Calculator
from groundling.inference.rollouts import Respond, Rollout
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.tasks.reward import rewards_of

_ROOM = 1.5  # tokens for a reply, in those of the longest working
_TOOL_TOKENS = 8  # markup of a call and its result
_READ = 50  # items whose characters the model must know
_JUDGED = 64  # replies that a reward model reads at once


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, up to where the reply begins. `item` is the task's question, if it is from a task."""

    ids: list[int]
    item: Item | None = None


class Prompts(Protocol):
    """Prompts of a run, and the rewards of replies to them."""

    @property
    def tokenizer(self) -> ChatTokenizer: ...
    @property
    def max_completion_length(self) -> int: ...
    @property
    def respond(self) -> Respond | None: ...
    @property
    def n_validation(self) -> int: ...
    def take(self, part: Part, indices: Sequence[int]) -> list[Prompt]: ...
    def rewards(self, prompts: Sequence[Prompt], replies: Sequence[Rollout]) -> list[float]: ...


class TaskPrompts:
    """The items of a task with verifiable rewards, in unlimited number. `level` 0 is the task's default, and
    `max_completion_length` 0 is half as much again as its longest working takes."""

    n_validation = 256
    n_documents = n_characters = n_train = 0
    token_counts = (0, 0)

    def __init__(
        self, name: str, level: int, tokenizer: ChatTokenizer, block_size: int, max_completion_length: int = 0,
        tool: bool = False,
    ) -> None:  # fmt: skip
        """Raises ValueError if there is no such task or level, if the model lacks one of its characters, or if its
        context is too short for it."""
        self.environment = find_environment(name)
        self.level = self.environment.checked_level(level)
        self.name, self.tokenizer = self.environment.name, tokenizer
        self.fingerprint = hashlib.sha256(f"{name} {self.environment.version} {self.level}".encode()).hexdigest()
        self.respond: Respond | None = Calculator(tokenizer) if tool else None
        prompt, reply = self.environment.longest(self.level)
        longest = len(self._ids("")) + prompt
        wanted = max_completion_length or round(_ROOM * reply) + 8 + (_TOOL_TOKENS * reply // 4 if tool else 0)
        self.max_completion_length = min(wanted, block_size - longest)
        if self.max_completion_length < reply + 1 and not max_completion_length:
            raise ValueError(
                f"The task {self.name} at level {self.level} needs up to {longest + reply + 1} tokens, but the model's "
                f"context is {block_size}. Use an easier --level, or a model with a larger --block-size."
            )
        self._check_characters()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.render([Message("user", text)], add_generation_prompt=True).ids

    def _check_characters(self) -> None:
        items = [self.environment.item(index, "train", self.level) for index in range(_READ)]
        text = "#".join(item.prompt + item.answer for item in items)  # the working may be left out
        missing = "".join(sorted(c for c in set(text) if not self.tokenizer.knows(c)))
        if missing:
            raise ValueError(
                f"The model has no tokens for {missing!r}, which the task {self.name} needs. Pretrain one on a text "
                "that has them, or with --tokenizer byte."
            )

    def take(self, part: Part, indices: Sequence[int]) -> list[Prompt]:
        items = [self.environment.item(index, part, self.level) for index in indices]
        return [Prompt(self._ids(item.prompt), item) for item in items]

    def rewards(self, prompts: Sequence[Prompt], replies: Sequence[Rollout]) -> list[float]:
        """1.0 for a right answer in a reply that ended, else 0.0."""
        found = []
        for prompt, reply in zip(prompts, replies, strict=True):
            assert prompt.item is not None
            text = last_turn(reply, self.tokenizer)
            found.append(self.environment.reward(prompt.item, text) if reply.finish == "end" else 0.0)
        return found


class FilePrompts:
    """The prompts of a file, whose replies a reward model judges."""

    respond = None

    def __init__(
        self, data: Dataset, judge: InitialModel, machine: Machine, block_size: int, max_completion_length: int
    ) -> None:
        self.data, self.tokenizer, self.machine = data, data.tokenizer, machine
        self.n_validation = min(len(data.validation), 256)
        longest = int(max(data.train.lengths.max(), data.validation.lengths.max()))
        self.max_completion_length = min(max_completion_length or block_size, block_size - longest)
        self._order = np.random.default_rng(0).permutation(len(data.train))  # a file may be sorted
        self._judge: GPT = judge.build().to(machine.device).requires_grad_(False).eval()

    def take(self, part: Part, indices: Sequence[int]) -> list[Prompt]:
        if part == "validation":
            return [Prompt(self.data.validation[index][0].tolist()) for index in indices]
        rows = [int(self._order[index % len(self._order)]) for index in indices]
        return [Prompt(self.data.train[row][0].tolist()) for row in rows]

    @torch.inference_mode()
    def rewards(self, prompts: Sequence[Prompt], replies: Sequence[Rollout]) -> list[float]:
        """The reward model's judgement of each reply."""
        texts = [prompt.ids + reply.tokens for prompt, reply in zip(prompts, replies, strict=True)]
        found = np.zeros(len(texts))
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(order), _JUDGED):
            rows = order[start : start + _JUDGED]
            found[rows] = rewards_of(self._judge, [texts[row] for row in rows], self.machine)
        return found.tolist()


def last_turn(reply: Rollout, tokenizer: ChatTokenizer) -> str:
    """The text of the assistant's last turn, without the calls of tools before it."""
    start = max((i + 1 for i, sampled in enumerate(reply.sampled) if not sampled), default=0)
    return tokenizer.parse(reply.tokens[start:]).content
