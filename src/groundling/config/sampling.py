"""Sampling settings. The command line, the chat and the studio derive their options from them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from groundling.config.settings import flag, setting

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
        0.7, "0 always picks the most likely token. 1 samples from the model's own distribution."
    )
    top_k: int = setting(50, "Sample from the k most likely tokens only. 0: no limit.")
    top_p: float = setting(1.0, "Sample from the most likely tokens that together have this probability. 1: no limit.")
    min_p: float = setting(0.0, "Sample from tokens at least this share as likely as the most likely one. 0: no limit.")
    repetition_penalty: float = setting(1.0, "Above 1: tokens in the prompt or the text so far become less likely.")
    presence_penalty: float = setting(0.0, "Above 0: tokens in the text so far become less likely.")
    frequency_penalty: float = setting(0.0, "Above 0: tokens become less likely each time they are generated.")
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = setting(None, "Repeats a sample. Default: a random seed, which is shown.")

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"--temperature must be 0 (greedy) or above, not {self.temperature}.")
        if self.top_k < 0:
            raise ValueError(f"--top-k must be 1 or more, or 0 for no limit, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1 (off), not {self.top_p}.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"--min-p must be in [0, 1], not {self.min_p}.")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"--repetition-penalty must be above 0 (1: off), not {self.repetition_penalty}.")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{flag(name)} must be a finite number (0: off).")
        for token, bias in self.logit_bias.items():
            if token < 0 or not abs(bias) <= _LARGEST_BIAS:
                raise ValueError(
                    f"A logit bias needs a token id of 0 or more and a value between -{_LARGEST_BIAS:g} and "
                    f"{_LARGEST_BIAS:g}. Token {token} has {bias}."
                )
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbelow(2**31))
        elif not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must be in [0, 2^63), not {self.seed}.")
