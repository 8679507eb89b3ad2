"""Supervised fine-tuning: learn the replies of conversations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F

from groundling.config import Config
from groundling.data.batches import Batch
from groundling.data.examples import Dataset, Examples, ExampleSampler
from groundling.data.packing import PackedExamples
from groundling.evaluation.score import Interrupted
from groundling.inference.rollouts import sample_rollouts
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.parallel.data_parallel import shared, total
from groundling.training.events import Sample
from groundling.training.task import Score, Task

_SAMPLE_TOKENS = 200


class Sft(Task):
    """Trains on whole conversations. The replies of the assistant are learned; all else is only read."""

    def __init__(
        self, data: Dataset, config: Config, initial: InitialModel, others: Mapping[str, InitialModel]
    ) -> None:
        self.data, self.settings, self.block_size = data, config.training, config.model.block_size
        self.chance = math.log(data.tokenizer.vocab_size)
        self.rows = PackedExamples(data.train) if getattr(config.method, "packing", False) else data.train
        size = config.training.batch_size * config.training.accumulate
        self.sampler = ExampleSampler(self.rows.lengths, size, config.training.seed)

    def batch(self, step: int, model: GPT) -> Batch:
        return self.rows.batch(self.sampler.rows(step))

    def epochs(self, step: int) -> float:
        return self.sampler.epochs(step)

    @torch.inference_mode()
    def evaluate(self, model: GPT, machine: Machine, batch_size: int, stopped: Callable[[], bool]) -> Score:
        """The loss of the validation part's replies, in nats per token, and the share of tokens that the model would
        have chosen itself."""
        model.eval()
        nats, right, n = 0.0, 0.0, 0.0
        for batch, counts in shared(validation_batches(self.data.validation, batch_size), self.mesh):
            if stopped():
                raise Interrupted
            assert batch.weights is not None
            learned = batch.weights.bool() & counts
            with machine.autocast():
                logits = model(batch.tokens.to(machine.device)).cpu().float()[learned]
            targets = batch.targets[learned]
            nats += float(F.cross_entropy(logits, targets, reduction="none").double().sum())
            right += int((logits.argmax(-1) == targets).sum())
            n += len(targets)
        nats, right, n = total((nats, right, n), self.mesh)
        return Score(nats / n, figures={"token_accuracy": right / n})

    def sample(self, model: GPT, step: int, stopped: Callable[[], bool]) -> Sample | None:
        """The most likely reply to the first prompt of the validation part."""
        prompt = self.data.validation.prompt(0)
        room = min(_SAMPLE_TOKENS, self.block_size - len(prompt))
        if room < 1:
            return None
        tokenizer = self.data.tokenizer
        (reply,) = sample_rollouts(model, [prompt], [0], room, tokenizer.end_ids, temperature=0.0)
        return Sample(step, tokenizer.decode(prompt) + "\n", tokenizer.decode(reply.tokens))


def validation_batches(examples: Examples, batch_size: int) -> Iterator[Batch]:
    """All examples in order of length, `batch_size` at a time."""
    rows = sorted(range(len(examples)), key=lambda row: int(examples.lengths[row]))
    for start in range(0, len(rows), batch_size):
        yield examples.batch(rows[start : start + batch_size])
