"""A task that brings nothing but the loss that every task has."""

from __future__ import annotations

from groundling.data.batches import Batch
from groundling.model.gpt import GPT
from groundling.training.task import Score, Task


class IdleTask(Task):
    def batch(self, step: int, model: GPT) -> Batch:
        raise AssertionError("It has no examples.")

    def evaluate(self, *_: object) -> Score:
        raise AssertionError("It is not evaluated.")
