"""The loss of every single token: where a model struggles, and what it would have said instead."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from groundling.data.corpus import Tokens
from groundling.data.tokenizers.base import END_OF_TEXT, Tokenizer
from groundling.evaluation.score import predictions
from groundling.machine import Machine
from groundling.model.gpt import GPT

_CUT = "\ufffd"  # what half a character decodes to
_LONGEST_CHARACTER = 4  # in tokens of one byte


@dataclass(frozen=True)
class TokenLoss:
    """What a model made of one token of a text.

    `text` is what the token adds to the text: "" where it ends inside of a character, which then stands with the token
    that ends it. `loss` is in nats, and `probability`, exp(-loss), is what the model gave the token. `choices` are the
    texts that it thought likeliest there, with their probabilities, the likeliest first.
    """

    token: int
    text: str
    loss: float
    probability: float
    choices: tuple[tuple[str, float], ...]


@torch.inference_mode()
def token_losses(
    model: GPT, tokens: Tokens, tokenizer: Tokenizer, machine: Machine, *, sliding: bool = False, n_choices: int = 3
) -> list[TokenLoss]:
    """The losses that `score` adds up, one for each token but the first, in the order of the text.

    Raises ValueError if there is nothing to predict.
    """
    losses, unfinished = list[TokenLoss](), list[int]()
    for targets, logits in predictions(model, tokens, machine, sliding=sliding):
        logs = logits.log_softmax(-1).cpu()
        taken = logs.gather(1, torch.from_numpy(targets)[:, None])[:, 0]
        likeliest = logs.topk(min(n_choices, logs.size(1)))
        probabilities, found = likeliest.values.exp().tolist(), likeliest.indices.tolist()
        for token, log, ids, shares in zip(targets.tolist(), taken.double(), found, probabilities, strict=True):
            unfinished.append(token)
            text = _shown(tokenizer, unfinished)
            if text.endswith(_CUT) and len(unfinished) < _LONGEST_CHARACTER:
                text = ""
            else:
                unfinished = []
            choices = tuple((_shown(tokenizer, [i]), share) for i, share in zip(ids, shares, strict=True))
            losses.append(TokenLoss(token, text, -float(log), float(log.exp()), choices))
    return losses


def _shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    return END_OF_TEXT if ids[-1] == tokenizer.end_of_text_id else tokenizer.decode(ids)
