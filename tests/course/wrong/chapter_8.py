"""Wrong answers to the exercises of chapter 8."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wrong import wrong


def _losses(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


@wrong("sft_loss", "The mask is off by one")
def mask_of_the_inputs(logits: torch.Tensor, tokens: torch.Tensor, reply: torch.Tensor) -> torch.Tensor:
    return _losses(logits, tokens)[reply[:, :-1]].mean()


@wrong("sft_loss", "The prompt and the padding count, too")
def without_a_mask(logits: torch.Tensor, tokens: torch.Tensor, reply: torch.Tensor) -> torch.Tensor:
    return _losses(logits, tokens).mean()


@wrong("sft_loss", "Divide by the number of reply tokens")
def divided_by_all(logits: torch.Tensor, tokens: torch.Tensor, reply: torch.Tensor) -> torch.Tensor:
    return (_losses(logits, tokens) * reply[:, 1:]).mean()


@wrong("sft_loss", "Nothing is shifted")
def unshifted(logits: torch.Tensor, tokens: torch.Tensor, reply: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[reply], tokens[reply])


@wrong("sft_loss", "That is the mean of rows")
def mean_of_rows(logits: torch.Tensor, tokens: torch.Tensor, reply: torch.Tensor) -> torch.Tensor:
    learned = reply[:, 1:].float()
    return ((_losses(logits, tokens) * learned).sum(1) / learned.sum(1)).mean()


@wrong("reward_of", "occurs in the working")
def somewhere(reply: str, answer: str) -> float:
    return float(answer in reply)


@wrong("reward_of", "what follows the last #")
def after_the_first_mark(reply: str, answer: str) -> float:
    return float("#" in reply and reply.split("#")[1] == answer)


@wrong("reward_of", "Without a # there is no answer")
def mark_not_needed(reply: str, answer: str) -> float:
    return float(reply.split("#")[-1] == answer)


@wrong("reward_of", "without spaces, too")
def stripped(reply: str, answer: str) -> float:
    return float("#" in reply and reply.rpartition("#")[2].strip() == answer)


@wrong("group_advantages", "Each group has its own")
def mean_of_all(rewards: torch.Tensor) -> torch.Tensor:
    return rewards - rewards.mean()


@wrong("group_advantages", "gives NaN")
def divided_by_spread(rewards: torch.Tensor) -> torch.Tensor:
    return (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)


@wrong("group_advantages", "A row is a group")
def over_the_questions(rewards: torch.Tensor) -> torch.Tensor:
    return rewards - rewards.mean(0)


@wrong("group_advantages", "has a positive advantage")
def the_other_way_round(rewards: torch.Tensor) -> torch.Tensor:
    return rewards.mean(1, keepdim=True) - rewards


@wrong("policy_gradient_loss", "The sign is wrong")
def uphill(logprobs: torch.Tensor, reply: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    return (advantages * (logprobs * reply).sum(1)).mean()


@wrong("policy_gradient_loss", "Tokens of the prompt or after the end")
def prompt_learned(logprobs: torch.Tensor, reply: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    return -(advantages * logprobs.sum(1)).mean()


@wrong("policy_gradient_loss", "Sum over tokens, do not average")
def mean_of_tokens(logprobs: torch.Tensor, reply: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    return -(advantages * (logprobs * reply).sum(1) / reply.sum(1)).mean()


@wrong("policy_gradient_loss", "Take their mean")
def sum_of_replies(logprobs: torch.Tensor, reply: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    return -(advantages * (logprobs * reply).sum(1)).sum()
