"""Pretraining: predict the next token of a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

from groundling.analysis.leakage import WINDOW, shared
from groundling.analysis.memorization import TrainingText
from groundling.analysis.ngrams import milestones, one_gram
from groundling.config import Config, Sampling
from groundling.data.batches import Batch, WindowSampler
from groundling.data.corpus import Corpus
from groundling.evaluation.score import Interrupted, score
from groundling.inference.stream import start_ids, stream
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.training.events import Checked, Sample
from groundling.training.task import Score, Task

_SAMPLE_SEED = 1  # always the same, so that samples can be compared
_MAX_INDEXED = 10_000_000  # characters of a text: indexing a longer one would take seconds of the training time


class Pretraining(Task):
    """Windows of the training part to learn from, the loss on the validation part, and samples that are compared with
    the training text."""

    def __init__(self, corpus: Corpus, config: Config, initial: InitialModel) -> None:
        """Raises ValueError if the text is too short."""
        if len(corpus.validation) < 2:
            raise ValueError(
                f"The text has {corpus.n_characters} character(s), too few to set a validation part aside. "
                "Use a longer text."
            )
        self.corpus, self.settings = corpus, config.training
        self.chance = math.log(corpus.tokenizer.vocab_size)
        windows = config.training.batch_size * config.training.accumulate
        self.windows = WindowSampler(corpus.train, config.model.block_size, windows, config.training.seed)

    def place(self, machine: Machine) -> None:
        self.windows = self.windows.near(machine)

    def batch(self, step: int) -> Batch:
        return self.windows(step)

    def epochs(self, step: int) -> float:
        return self.windows.epochs(step)

    def evaluate(self, model: GPT, machine: Machine, batch_size: int, stopped: Callable[[], bool]) -> Score:
        """The loss on the validation part, in nats per token."""
        found = score(
            model, self.corpus.validation, self.corpus.tokenizer, machine, max_tokens=self.settings.eval_tokens,
            batch_size=batch_size, stopped=stopped,
        )  # fmt: skip
        return Score(found.loss, bits_per_byte=found.bits_per_byte)

    def baselines(self) -> Checked:
        """The losses of n-gram models, and how much of the validation part the training part contains."""
        text, V = self.corpus, self.corpus.tokenizer.vocab_size
        tokens = len(text.train) + len(text.validation)
        window = max(8, round(WINDOW * tokens / text.n_characters))  # a token may be several characters
        leakage = shared(text.train, text.validation, window)
        return Checked(milestones(text.train, text.validation, V), one_gram(text.train, V), leakage)

    def sample(self, model: GPT, step: int, stopped: Callable[[], bool]) -> Sample:
        """What it writes after the prompt of the settings, and how much of it the training text contains."""
        tokenizer, settings = self.corpus.tokenizer, self.settings
        ids = tokenizer.encode(settings.sample_prompt, "skip") or start_ids(tokenizer, self.corpus.n_documents)
        pieces: list[str] = []
        for piece in stream(model, tokenizer, ids, settings.sample_tokens, Sampling(seed=_SAMPLE_SEED)):
            if stopped():
                raise Interrupted
            pieces.append(piece)
        prompt, text = tokenizer.decode(ids), "".join(pieces)
        if self._training_text is None:
            return Sample(step, prompt, text)
        found = self._training_text.report(text)
        return Sample(step, prompt, text, found.share, found.longest, [(span.start, span.stop) for span in found.spans])

    @cached_property
    def _training_text(self) -> TrainingText | None:
        """Indexed for the first sample. None for a text that would take long."""
        return TrainingText.of(self.corpus) if self.corpus.n_characters <= _MAX_INDEXED else None
