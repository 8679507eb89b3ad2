"""Replies that a model writes while it trains: sampled, rewarded, and made into a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from groundling.data.batches import Batch
from groundling.data.hashing import mix
from groundling.environments.environment import Part
from groundling.evaluation.score import Interrupted
from groundling.inference.rollouts import Rollout, sample_rollouts
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.tasks.prompts import Prompt, Prompts

_WIDTHS = 32  # batches have few widths


@dataclass(frozen=True)
class Group:
    """A prompt, the replies to it, and their rewards."""

    prompt: Prompt
    replies: Sequence[Rollout]
    rewards: Sequence[float]

    @property
    def has_signal(self) -> bool:
        """Whether some replies are better than others, so that there is something to learn."""
        return min(self.rewards) < max(self.rewards)


def sample_groups(
    model: GPT, prompts: Prompts, part: Part, indices: Sequence[int], n: int, seeds: Sequence[int], temperature: float,
    machine: Machine | None = None, stopped: Callable[[], bool] = lambda: False,
) -> list[Group]:  # fmt: skip
    """`n` replies to each prompt: a pure function of the weights and the arguments. `seeds` number the call. With a
    `machine`, matrix products have its precision, as in training. Raises Interrupted once `stopped()`."""

    def on_token() -> None:
        if stopped():
            raise Interrupted

    taken = prompts.take(part, indices)
    each = [prompt for prompt in taken for _ in range(n)]
    key = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    drawn = mix(np.arange(len(each), dtype=np.uint64) + key) >> np.uint64(1)
    with machine.autocast() if machine else nullcontext():
        replies = sample_rollouts(
            model, [prompt.ids for prompt in each], drawn.tolist(), prompts.max_completion_length,
            prompts.tokenizer.end_ids, temperature, prompts.respond, on_token,
        )  # fmt: skip
    rewards = prompts.rewards(each, replies)
    starts = range(0, len(each), n)
    return [Group(prompt, replies[i : i + n], rewards[i : i + n]) for prompt, i in zip(taken, starts, strict=True)]


def batch_of(groups: Sequence[Group], block_size: int) -> Batch:
    """All replies as rows. Tokens that the model sampled have weight 1; prompts, forced tokens and padding have 0.
    The extra `sampled` has the log-probabilities with which they were drawn."""
    rows = [(group.prompt.ids, reply) for group in groups for reply in group.replies]
    longest = max(len(prompt) + len(reply.tokens) for prompt, reply in rows) - 1
    width = min(block_size, -(-longest // _WIDTHS) * _WIDTHS)
    ids = np.zeros((len(rows), width + 1), np.int64)
    weights, sampled = (np.zeros((len(rows), width), np.float32) for _ in range(2))
    for i, (prompt, reply) in enumerate(rows):
        whole = prompt + reply.tokens
        ids[i, : len(whole)] = whole
        weights[i, len(prompt) - 1 : len(whole) - 1] = reply.sampled
        sampled[i, len(prompt) - 1 : len(whole) - 1] = reply.logprobs
    tokens = torch.from_numpy(ids)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(weights), {"sampled": torch.from_numpy(sampled)})


def figures_of(groups: Sequence[Group], longest: int) -> dict[str, float]:
    """What a step's replies were like."""
    replies = [reply for group in groups for reply in group.replies]
    rewards = np.array([group.rewards for group in groups])
    calls = [_calls(reply) for reply in replies]
    return {
        "reward": float(rewards.mean()),
        "signal": float(np.mean([group.has_signal for group in groups])),
        "length": float(np.mean([len(reply.tokens) for reply in replies])),
        "cut": float(np.mean([reply.finish == "length" for reply in replies])),
        **({"tool_calls": float(np.mean(calls))} if any(calls) else {}),
    }


def _calls(reply: Rollout) -> int:
    """How often the reply called a tool: after each call, tokens are forced."""
    return sum(before and not now for before, now in pairwise(reply.sampled))
