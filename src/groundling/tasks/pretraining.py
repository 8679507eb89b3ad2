"""Pretraining: predict the next token of a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

from groundling.analysis.leakage import WINDOW, shared
from groundling.analysis.memorization import TrainingText
from groundling.analysis.ngrams import ngram_losses, one_gram
from groundling.config import Config, Sampling, limits
from groundling.data.batches import Batch, WindowSampler
from groundling.data.corpus import Corpus
from groundling.evaluation.score import Interrupted, score
from groundling.inference.stream import start_ids, stream
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.training.events import Checked, Sample
from groundling.training.task import Score, Task

_SAMPLE_SEED = 1  # fixed, so that samples of different steps are comparable
_MAX_INDEXED = 10_000_000  # characters; indexing a longer text would take seconds of training time


def check_length(corpus: Corpus, config: Config, is_new: bool) -> None:
    """Raise ValueError if a text is too short for a model: one that `is_new`, or whose context cannot be changed."""
    training, validation, context = len(corpus.train), len(corpus.validation), config.model.block_size
    if training > context and validation > 1:
        return
    if training + validation < 4:  # two of each part
        raise ValueError(
            f"The text has {corpus.n_characters} character(s), too few for a training and a validation part. Use a "
            "longer text."
        )
    ways = ["Use a longer text"]
    if validation < 2:
        missing = f"The validation part has {validation} token(s), but needs at least 2."
        ways += ["a larger --val-fraction"] if config.text.val_fraction < limits.MOST_VALIDATION else []
    else:
        missing = f"The training part has {training} token(s), but a context of {context} needs at least {context + 1}."
        ways += [f"--block-size {training - 1}"] if is_new and training > 1 else []
        ways += ["a smaller --val-fraction"] if training + validation > context + 2 else []
    raise ValueError(f"{missing} {', or '.join(ways)}.")


class Pretraining(Task):
    """Trains on windows of the training part, evaluates the loss on the validation part, and writes samples."""

    def __init__(self, corpus: Corpus, config: Config, initial: InitialModel) -> None:
        """Raises ValueError if the text is too short."""
        check_length(corpus, config, is_new=not config.training.init_from)
        self.corpus, self.settings = corpus, config.training
        self.chance = math.log(corpus.tokenizer.vocab_size)
        windows = config.training.batch_size * config.training.accumulate
        self.windows = WindowSampler(corpus.train, config.model.block_size, windows, config.training.seed)

    def place(self, machine: Machine) -> None:
        self.windows = self.windows.near(machine)

    def batch(self, step: int, model: GPT) -> Batch:
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
        """The losses of n-gram models, and the share of the validation part that also occurs in the training part."""
        text, V = self.corpus, self.corpus.tokenizer.vocab_size
        tokens = len(text.train) + len(text.validation)
        window = max(8, round(WINDOW * tokens / text.n_characters))  # a token may be several characters
        leakage = shared(text.train, text.validation, window)
        return Checked(ngram_losses(text.train, text.validation, V), one_gram(text.train, V), leakage)

    def sample(self, model: GPT, step: int, stopped: Callable[[], bool]) -> Sample:
        """A continuation of the settings' prompt, and how much of it is copied from the training text."""
        tokenizer, settings = self.corpus.tokenizer, self.settings
        ids = tokenizer.encode_prompt(settings.sample_prompt, "skip") or start_ids(tokenizer, self.corpus.n_documents)
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
        """An index, made for the first sample. None for a text that would take too long."""
        return TrainingText.of(self.corpus) if self.corpus.n_characters <= _MAX_INDEXED else None
