"""What the tasks on preference pairs share: batches of whole pairs, and their evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from groundling.config import Config
from groundling.data.batches import Batch
from groundling.data.examples import Dataset, Examples, ExampleSampler
from groundling.evaluation.score import Interrupted
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.training.task import Score, Task


class Pairs(Task):
    """Batches of pairs, with two rows for each: the chosen reply and the rejected one."""

    metric: str

    def __init__(self, data: Dataset, config: Config) -> None:
        self.data, self.train, self.validation = data, data.train, data.validation
        t = config.training
        self.sampler = ExampleSampler(_lengths(self.train), t.batch_size * t.accumulate, t.seed)

    def batch(self, step: int, model: GPT) -> Batch:
        pairs = self.sampler.rows(step)
        return self.rows(self.train, pairs, self.baseline(model, self.train, pairs))

    def rows(self, examples: Examples, pairs: npt.NDArray[np.int64], baseline: float) -> Batch:
        """The batch of some pairs, those of a pair next to each other."""
        return examples.batch((2 * pairs[:, None] + np.arange(2)).ravel())

    def baseline(self, model: GPT, examples: Examples, pairs: npt.NDArray[np.int64]) -> float:
        """A number of the whole step, or of the whole validation part, that the loss of each pair needs."""
        return 0.0

    def weight(self, batch: Batch) -> float:
        """The number of pairs."""
        return len(batch) / 2

    def epochs(self, step: int) -> float:
        return self.sampler.epochs(step)

    @torch.inference_mode()
    def evaluate(self, model: GPT, machine: Machine, batch_size: int, stopped: Callable[[], bool]) -> Score:
        """The loss of the validation part's pairs, with the figures of `loss`."""
        model.eval()
        order = np.argsort(_lengths(self.validation), kind="stable")
        n, baseline = len(order), self.baseline(model, self.validation, order)
        value, figures = 0.0, defaultdict[str, float](float)
        for start in range(0, n, batch_size):
            if stopped():
                raise Interrupted
            pairs = order[start : start + batch_size]
            with machine.autocast():
                loss = self.loss(model, self.rows(self.validation, pairs, baseline).to(machine.device))
            value += float(loss.value) * len(pairs) / n
            for name, figure in loss.figures.items():
                figures[name] += float(figure) * len(pairs) / n
        return Score(value, self.metric, figures=figures)


def _lengths(examples: Examples) -> npt.NDArray[np.int64]:
    """The longer one of each pair."""
    longest: npt.NDArray[np.int64] = examples.lengths.reshape(-1, 2).max(1)
    return longest
