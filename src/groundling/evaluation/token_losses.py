"""The loss of every token, and what the model would have predicted instead."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from groundling.data.tokenizers.base import END_OF_TEXT, Tokenizer
from groundling.data.tokens import Tokens
from groundling.evaluation.score import predictions
from groundling.machine import Machine
from groundling.model.gpt import GPT

_INCOMPLETE = "\ufffd"  # what an incomplete character decodes to
_LONGEST_CHARACTER = 4  # in tokens of one byte


@dataclass(frozen=True)
class TokenLoss:
    """How well a model predicted one token of a text.

    `text` is what the token adds: "" if it ends inside a character, which then appears with the character's last token.
    `loss` is in nats, and `probability` is exp(-loss). `choices` are the most likely texts here, with their
    probabilities, best first.
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
    """The losses that `score` adds up, one for each token but the first, in text order.

    Raises ValueError if there is nothing to predict.
    """
    losses, unfinished = list[TokenLoss](), list[int]()
    for targets, logits in predictions(model, tokens, machine, sliding=sliding):
        logs = logits.log_softmax(-1).cpu()
        of_targets = logs.gather(1, torch.from_numpy(targets)[:, None])[:, 0].double()
        best = logs.topk(min(n_choices, logs.size(1)))
        best_ids, best_shares = best.indices.tolist(), best.values.exp().tolist()
        for token, log, ids, shares in zip(targets.tolist(), of_targets, best_ids, best_shares, strict=True):
            unfinished.append(token)
            text = _text(tokenizer, unfinished)
            if text.endswith(_INCOMPLETE) and len(unfinished) < _LONGEST_CHARACTER:
                text = ""
            else:
                unfinished = []
            choices = tuple((_text(tokenizer, [i]), share) for i, share in zip(ids, shares, strict=True))
            losses.append(TokenLoss(token, text, -float(log), float(log.exp()), choices))
    return losses


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return (
        END_OF_TEXT if ids[-1] == tokenizer.end_of_text_id else tokenizer.decode_bytes(ids).decode("utf-8", "replace")
    )
