"""A small supervised task, as somebody would add one: prompts and answers, and a loss on the answers alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from groundling.config import Config
from groundling.data.batches import Batch
from groundling.data.corpus import Corpus
from groundling.model.gpt import GPT
from groundling.training.task import Score, Task


class Answers(Task):
    """Each line is an example, such as `12+30=42`. The prompt ends with `=` and is read but not learned."""

    def __init__(self, corpus: Corpus, config: Config, initial: Any, others: Any) -> None:
        lines = corpus.tokenizer.decode(corpus.train.read(0, len(corpus.train))).splitlines()
        examples = [self._example(line, corpus, config.model.block_size) for line in lines if "=" in line]
        batches = (Batch(*map(torch.stack, zip(*part, strict=True))) for part in (examples[:8], examples[8:]))
        self.held_out, self.examples = batches
        self.seed, self.size = config.training.seed, config.training.batch_size * config.training.accumulate

    @staticmethod
    def _example(line: str, corpus: Corpus, width: int) -> tuple[torch.Tensor, ...]:
        ids = torch.tensor(corpus.tokenizer.encode(line + "\n"))
        learned = (torch.arange(1, len(ids)) > line.index("=")).float()
        return tuple(F.pad(part, (0, width - len(learned))) for part in (ids[:-1], ids[1:], learned))

    def batch(self, step: int, model: GPT) -> Batch:
        rows = torch.from_numpy(np.random.default_rng([self.seed, step]).choice(len(self.examples), self.size))
        examples = self.examples
        return Batch(examples.tokens[rows], examples.targets[rows], torch.as_tensor(examples.weights)[rows])

    @torch.inference_mode()
    def evaluate(self, model: GPT, *_: Any) -> Score:
        read = torch.as_tensor(self.held_out.weights) == 0
        right = (model.eval()(self.held_out.tokens).argmax(-1) == self.held_out.targets) | read
        accuracy = 1 - float((~right).sum() / (~read).sum())
        figures = {"whole_answers": float(right.all(1).float().mean())}
        return Score(accuracy, "accuracy", lower_is_better=False, figures=figures)
