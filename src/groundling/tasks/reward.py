"""A reward model: a number for each reply, higher for those that people chose (Bradley-Terry)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from groundling.config import Config
from groundling.data.batches import Batch
from groundling.data.examples import Dataset, Examples
from groundling.machine import Machine
from groundling.model.compiled import Forward
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.tasks.losses.preference import reward_figures, reward_losses
from groundling.tasks.pairs import Pairs
from groundling.training.task import Loss


class Reward(Pairs):
    """The reward of a reply is the logit of the last token of the vocabulary, which stands for nothing else, where the
    model has read the end of the reply. So a reward model is a `GPT` like all others."""

    metric = "reward loss"

    def __init__(
        self, data: Dataset, config: Config, initial: InitialModel, others: Mapping[str, InitialModel]
    ) -> None:
        super().__init__(data, config)
        self.center = config.method.center

    def rows(self, examples: Examples, pairs: npt.NDArray[np.int64], baseline: float) -> Batch:
        """Whole replies, their ends included. `weights` are 1 where a token, not its successor, is part of a reply."""
        batch = super().rows(examples, pairs, baseline)
        assert batch.weights is not None
        whole = torch.cat((batch.tokens[:, :1], batch.targets), dim=1)
        return Batch(whole, whole, F.pad(batch.weights, (1, 0)))

    def loss(self, forward: Forward, batch: Batch) -> Loss:
        assert batch.weights is not None
        last = batch.weights.size(1) - 1 - batch.weights.ne(0).flip(1).int().argmax(1)
        found = rewards(forward(batch.tokens), last)
        return Loss(reward_losses(found[::2], found[1::2], self.center).mean(), reward_figures(found[::2], found[1::2]))


def rewards(logits: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """The reward of each row, (B,) in float32: from logits (B, T, V), where the token at `last`, (B,), is read."""
    return logits[torch.arange(len(logits), device=logits.device), last, -1].float()


@torch.inference_mode()
def rewards_of(model: GPT, texts: Sequence[Sequence[int]], machine: Machine) -> npt.NDArray[np.float32]:
    """The rewards of conversations that end with a reply, as token ids."""
    rows = [torch.tensor(text) for text in texts]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(machine.device)
    with machine.autocast():
        logits = model(tokens)
    return rewards(logits, torch.tensor([len(row) - 1 for row in rows], device=machine.device)).cpu().numpy()
