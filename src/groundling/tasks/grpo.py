"""GRPO and RLOO: replies that earn more than others to the same prompt become likelier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from groundling.config import Config
from groundling.data.batches import Batch
from groundling.evaluation.intervals import pass_at_k
from groundling.machine import Machine
from groundling.model.compiled import Forward
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.tasks.losses.logprobs import entropy, masked_sum, token_logprobs
from groundling.tasks.losses.policy import Sampled, divisor, group_advantages, policy_loss
from groundling.tasks.prompts import FilePrompts, TaskPrompts
from groundling.tasks.replies import Group, batch_of, figures_of, sample_groups
from groundling.training.events import Replies, ReplyGroup
from groundling.training.task import Loss, Score, Task

_EVALUATION, _FIRST_LOOK = 1, 2  # seeds of rollouts outside of training
_LOOKED_AT, _TRIES = 64, 8
_SHOWN = 3  # groups


class NoSignal(ValueError):
    """All replies to each prompt earn the same, so there is nothing to learn from."""


class Grpo(Task):
    """Each step samples replies to some prompts, and makes one update from them. A step's replies are a pure function
    of its weights, so nothing but the weights has to be saved."""

    def __init__(self, data: Any, config: Config, initial: InitialModel, others: Mapping[str, InitialModel]) -> None:
        self.data, self.method, self.block_size = data, config.method, config.model.block_size
        self.seed = config.training.seed
        self.n_prompts = max(1, config.training.batch_size * config.training.accumulate // self.method.num_generations)
        self.initial, self.judge = initial, others.get("reward")
        self._parent: GPT | None = None
        self._machine: Machine | None = None
        self._prompts: TaskPrompts | FilePrompts | None = data if isinstance(data, TaskPrompts) else None

    def place(self, machine: Machine) -> None:
        self._machine = machine
        self._parent = self.initial.build().to(machine.device).requires_grad_(False).eval()
        if self._prompts is None:
            assert self.judge is not None
            self._prompts = FilePrompts(
                self.data, self.judge, machine, self.block_size, self.method.max_completion_length
            )

    @property
    def prompts(self) -> TaskPrompts | FilePrompts:
        assert self._prompts is not None
        return self._prompts

    def batch(self, step: int, model: GPT) -> Batch:
        """Replies to the step's prompts, with their advantages. If no group has a signal, nothing is learned."""
        groups = self._groups(step, model, self.n_prompts)
        batch, method = batch_of(groups, self.block_size), self.method
        assert batch.weights is not None
        rewards, extras = torch.tensor([group.rewards for group in groups]), dict(batch.extras)
        if method.beta:
            reference = self._reference(batch)
            if method.loss_type == "rloo":  # there, the KL divergence is a part of the reward
                kl = masked_sum(extras["sampled"] - reference, batch.weights)
                rewards = rewards - method.beta * kl.view_as(rewards)
            else:
                extras["reference"] = reference
        extras["advantages"] = group_advantages(rewards, method.baseline, method.scale_rewards).flatten().float()
        learned = batch.weights * ("reference" in extras or bool(extras["advantages"].any()))
        figures = figures_of(groups, self.prompts.max_completion_length)
        return Batch(batch.tokens, batch.targets, learned, extras, figures)

    def _groups(self, step: int, model: GPT, n: int) -> list[Group]:
        """The first `n` groups of a step."""
        indices = range(step * self.n_prompts, step * self.n_prompts + n)
        seeds, method = [self.seed, step], self.method
        return sample_groups(
            model, self.prompts, "train", indices, method.num_generations, seeds, method.temperature, self._machine,
            self.stopped,
        )  # fmt: skip

    @torch.no_grad()
    def _reference(self, batch: Batch) -> torch.Tensor:
        """log p of each target under the parent, (B, T)."""
        assert self._parent is not None and self._machine is not None
        here = batch.to(self._machine.device)
        with self._machine.autocast():
            return token_logprobs(self._parent(here.tokens) / self.method.temperature, here.targets).cpu()

    def weight(self, batch: Batch) -> float:
        assert batch.weights is not None
        return divisor(batch.weights, self.method, self.prompts.max_completion_length) if batch.weight else 0.0

    def loss(self, forward: Forward, batch: Batch) -> Loss:
        """The policy's loss, as `policy_loss` has it, with how far the sampler's probabilities are from these."""
        assert batch.weights is not None
        mask = batch.weights
        logits = forward(batch.tokens).float() / self.method.temperature
        logprobs = token_logprobs(logits, batch.targets)
        sampled = Sampled(logprobs, logprobs.detach(), mask, batch.extras.get("reference"))
        total, figures = policy_loss(sampled, batch.extras["advantages"], self.method)
        value = total / max(divisor(mask, self.method, self.prompts.max_completion_length), 1e-9)
        gap = ((logprobs.detach() - batch.extras["sampled"]) * mask).abs()
        n = mask.sum().clamp(min=1)
        figures = dict(figures) | {
            "entropy": (entropy(logits.detach()) * mask).sum() / n, "sampling_gap": gap.sum() / n,
            "largest_sampling_gap": gap.max(),
        }  # fmt: skip
        return Loss(value, figures)

    def evaluate(self, model: GPT, machine: Machine, batch_size: int, stopped: Callable[[], bool]) -> Score:
        """The mean reward of the most likely replies to the validation part's prompts. For a task, that is the share of
        right answers. `kl` estimates the KL divergence from the parent, per token."""
        indices = range(self.prompts.n_validation)
        seeds = [self.seed, _EVALUATION]
        groups = sample_groups(model, self.prompts, "validation", indices, 1, seeds, 0.0, machine, stopped)
        figures = figures_of(groups, self.prompts.max_completion_length)
        reward = figures.pop("reward")
        del figures["signal"]
        figures["kl"] = self._kl(model, groups, machine)
        name = "accuracy" if isinstance(self.data, TaskPrompts) else "reward"
        return Score(reward, name, lower_is_better=False, figures=figures)

    @torch.inference_mode()
    def _kl(self, model: GPT, groups: Sequence[Group], machine: Machine) -> float:
        assert self._parent is not None
        batch = batch_of(groups, self.block_size).to(machine.device)
        assert batch.weights is not None
        with machine.autocast():
            ours, theirs = (token_logprobs(each(batch.tokens), batch.targets) for each in (model, self._parent))
        return float(((ours - theirs) * batch.weights).sum() / batch.weights.sum())

    def first_look(self, model: GPT) -> str:
        """Sample 64 prompts × 8 replies. Returns what they earned. Raises NoSignal where there is nothing to learn."""
        temperature = self.method.temperature
        groups = sample_groups(
            model, self.prompts, "train", range(_LOOKED_AT), _TRIES, [self.seed, _FIRST_LOOK], temperature,
            self._machine,
        )  # fmt: skip
        signal = np.mean([group.has_signal for group in groups])
        if not isinstance(self.data, TaskPrompts):
            mean = np.mean([group.rewards for group in groups])
            return f"Before training: mean reward {mean:.3f}, {signal:.0%} of groups have a signal."
        right = [int(sum(group.rewards)) for group in groups]
        one, eight = (float(np.mean([pass_at_k(_TRIES, c, k) for c in right])) for k in (1, _TRIES))
        found = (
            f"Before training, {_LOOKED_AT} prompts × {_TRIES} replies: pass@1 {one:.1%}, pass@{_TRIES} {eight:.1%}, "
            f"{signal:.0%} of groups have a signal."
        )
        if signal == 0:
            if one == 1:
                why = "all answers are right. Use a harder --level."
            elif one > 0:
                why = "all replies to the same prompt earn the same. Use a higher --temperature."
            elif self.method.max_completion_length:
                why = "no answer is right. Use a larger --max-completion-length, or run `sft` on worked examples first."
            else:
                why = "no answer is right. Run `sft` on worked examples first, or use an easier --level."
            raise NoSignal(f"{found} There is nothing to learn from: {why}")
        return found

    def sample(self, model: GPT, step: int, stopped: Callable[[], bool]) -> Replies:
        """Some groups of the next step."""
        tokenizer = self.data.tokenizer
        groups = self._groups(step, model, min(_SHOWN, self.n_prompts))
        shown = [
            ReplyGroup(
                tokenizer.decode(group.prompt.ids),
                [tokenizer.decode(reply.tokens) for reply in group.replies],
                list(group.rewards),
            )
            for group in groups
        ]
        return Replies(step, shown)
