"""Sampling settings. The command line, the chat and the studio derive their options from them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from groundling.config import limits
from groundling.config.limits import Limits
from groundling.config.setting import check_numbers, setting

_LARGEST_BIAS = 100.0  # as in OpenAI's interface: enough to force a token, or to forbid it


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    `temperature` 0 is greedy: always the most likely token. `top_k` (0: off) keeps the k most likely tokens, `top_p`
    (1: off) the most likely ones that together have this probability (Holtzman et al., "The curious case of neural
    text degeneration", 2020), `min_p` (0: off) those at least this share as likely as the most likely (Nguyen et al.,
    "Min-p sampling", 2024).

    `repetition_penalty` (1: off) divides positive logits of tokens in the prompt or the text so far, and multiplies
    negative ones (Keskar et al., "CTRL", 2019). `presence_penalty` is subtracted once from the logits of generated
    tokens, `frequency_penalty` as often as they were generated. `logit_bias` is added to logits, by token id.

    Without a `seed`, a random one is drawn. It can be read from the object, so that any sample can be repeated.
    Raises ValueError naming the flag.
    """

    temperature: float = setting(
        0.7,
        "0 always picks the most likely token. 1 samples from the model's own distribution.",
        Limits(0, 10**6, fractions=True),
    )
    top_k: int = setting(50, "Sample from the k most likely tokens only. 0: no limit.", Limits(0))
    top_p: float = setting(
        1.0,
        "Sample from the most likely tokens that together have this probability. 1: no limit.",
        Limits(0, 1, fractions=True, above=True),
    )
    min_p: float = setting(
        0.0, "Sample from tokens at least this share as likely as the most likely one. 0: no limit.", limits.SHARE
    )
    repetition_penalty: float = setting(
        1.0, "Above 1: tokens in the prompt or the text so far become less likely.", Limits(0.01, 100, fractions=True)
    )
    presence_penalty: float = setting(
        0.0, "Above 0: tokens in the text so far become less likely.", Limits(-100, 100, fractions=True)
    )
    frequency_penalty: float = setting(
        0.0, "Above 0: tokens become less likely each time they are generated.", Limits(-100, 100, fractions=True)
    )
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = setting(None, "Repeats a sample. Default: a random seed, which is shown.", limits.SEED)

    def __post_init__(self) -> None:
        check_numbers(self)
        for token, bias in self.logit_bias.items():
            if token < 0 or not abs(bias) <= _LARGEST_BIAS:
                raise ValueError(
                    f"A logit bias needs a token id of 0 or more and a value between -{_LARGEST_BIAS:g} and "
                    f"{_LARGEST_BIAS:g}. Token {token} has {bias}."
                )
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbelow(2**31))
