"""The loss by place in the context: whether a model makes use of a longer one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from groundling.data.tokens import Tokens
from groundling.evaluation.score import predictions
from groundling.machine import Machine
from groundling.model.gpt import GPT

_PER_DOUBLING = 2


@dataclass(frozen=True)
class PositionLoss:
    """The mean loss, in nats, of `tokens` tokens that were predicted from `first` to `last` tokens before them."""

    first: int
    last: int
    loss: float
    tokens: int


@torch.inference_mode()
def losses_by_position(model: GPT, tokens: Tokens, machine: Machine, max_tokens: int = 0) -> list[PositionLoss]:
    """The losses that `score` adds up, by how many tokens came before in the window, two groups for each doubling.

    Raises ValueError if there is nothing to predict.
    """
    size = model.config.block_size
    sums, counts = np.zeros(size), np.zeros(size, dtype=np.int64)
    for targets, logits in predictions(model, tokens, machine, max_tokens=max_tokens):  # whole windows, one by one
        losses = F.cross_entropy(logits, torch.from_numpy(targets).to(logits.device), reduction="none")
        places = np.arange(len(targets)) % size
        np.add.at(sums, places, losses.cpu().double().numpy())
        np.add.at(counts, places, 1)
    doublings = np.arange(_PER_DOUBLING * math.log2(size)) / _PER_DOUBLING
    ends = np.unique([0, *np.round(2**doublings), size]).astype(int)
    return [
        PositionLoss(int(a) + 1, int(b), float(sums[a:b].sum() / counts[a:b].sum()), int(counts[a:b].sum()))
        for a, b in pairwise(ends)
        if counts[a:b].any()
    ]
