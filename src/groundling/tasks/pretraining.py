"""Pretraining: predict the next token of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from groundling.analysis.leakage import WINDOW, shared
from groundling.analysis.memorization import TrainingText
from groundling.analysis.ngrams import ngram_losses, one_gram
from groundling.config import Config, Sampling, limits
from groundling.data.batches import Batch, WindowSampler
from groundling.data.corpus import Corpus
from groundling.data.mixture import Mixture, MixtureSampler, Part, Text, parts_of
from groundling.evaluation.score import Interrupted, mean_score, score, weighted
from groundling.evaluation.score import Score as TextScore
from groundling.inference.stream import start_ids, stream
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.training.events import LOSS_ON, Checked, Sample
from groundling.training.task import Score, Task

_SAMPLE_SEED = 1  # fixed, so that samples of different steps are comparable
_MAX_INDEXED = 10_000_000  # characters; indexing a longer text would take seconds of training time


def check_length(text: Text, config: Config, is_new: bool) -> None:
    """Raise ValueError if a text, or one of a mixture, is too short for a model: one that `is_new`, or whose context
    cannot be changed."""
    for part in parts_of(text):
        try:
            _check_length(part.corpus, config, is_new)
        except ValueError as error:
            raise ValueError(
                f"--mix: {part.name} is too short. {error}" if isinstance(text, Mixture) else error
            ) from None


def _check_length(corpus: Corpus, config: Config, is_new: bool) -> None:
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
    """Trains on windows of the training part, evaluates the loss on the validation part, and writes samples.

    Of a mixture, each text has its own training and validation part. The loss is the mean of theirs, weighted by their
    shares at the end of the run.
    """

    def __init__(self, text: Text, config: Config, initial: InitialModel) -> None:
        """Raises ValueError if the text, or one of them, is too short."""
        self.text, self.parts, self.settings = text, parts_of(text), config.training
        check_length(text, config, is_new=not config.training.init_from)
        self.chance = math.log(text.tokenizer.vocab_size)
        windows, seed = config.training.batch_size * config.training.accumulate, config.training.seed
        block_size = config.model.block_size
        self.windows: WindowSampler | MixtureSampler
        if isinstance(text, Mixture):
            assert config.mix is not None
            self.windows = MixtureSampler.of(text, config.mix.steps, block_size, windows, seed)
        else:
            self.windows = WindowSampler(text.train, block_size, windows, seed)

    def place(self, machine: Machine) -> None:
        self.windows = self.windows.near(machine)

    def batch(self, step: int, model: GPT) -> Batch:
        return self.windows(step)

    def epochs(self, step: int) -> float:
        return self.windows.epochs(step)

    def mixed(self, steps: int) -> list[dict[str, Any]]:
        """The texts of a mixture; see `Task.mixed`."""
        if isinstance(self.windows, WindowSampler):
            return []
        return [
            {
                "start": float(start),
                "end": float(end),
                "training_tokens": len(part.corpus.train),
                "validation_tokens": len(part.corpus.validation),
                "epochs": epochs,
            }
            for part, (start, end), epochs in zip(
                self.parts, self.windows.turns.shares, self.windows.epochs_of_each(steps), strict=True
            )
        ]

    def evaluate(self, model: GPT, machine: Machine, batch_size: int, stopped: Callable[[], bool]) -> Score:
        """The loss on the validation part, in nats per token. Of a mixture also that of each text."""
        options: dict[str, Any] = {"batch_size": batch_size, "stopped": stopped, "mesh": self.mesh}
        mean, found = score_texts(self.parts, model, machine, self.settings.eval_tokens, **options)
        each = zip(self.parts, found, strict=True)
        losses = {f"{LOSS_ON}{part.name}": one.loss for part, one in each if len(found) > 1}
        return Score(mean.loss, bits_per_byte=mean.bits_per_byte, figures=losses)

    def baselines(self) -> Checked:
        """The losses of n-gram models, and the share of the validation part that also occurs in the training part. Of
        a mixture, n-grams are counted in each text alone, and the figures are weighted means."""
        V, ends = self.text.tokenizer.vocab_size, [part.end for part in self.parts]
        texts = [part.corpus for part in self.parts]
        window = max(8, round(WINDOW * sum(self.text.token_counts) / self.text.n_characters))  # tokens of 50 characters
        leaked = [shared([each.train for each in texts], text.validation, window) for text in texts]
        losses = [ngram_losses(text.train, text.validation, V) for text in texts]
        longest = max(map(len, losses))  # a list ends where longer n-grams only get worse
        padded = [each + each[-1:] * (longest - len(each)) for each in losses]
        milestones = [weighted(ends, column) for column in zip(*padded, strict=True)]
        return Checked(milestones, weighted(ends, [one_gram(text.train, V) for text in texts]), weighted(ends, leaked))

    def sample(self, model: GPT, step: int, stopped: Callable[[], bool]) -> Sample:
        """A continuation of the settings' prompt, and how much of it is copied from the training text."""
        tokenizer, settings = self.text.tokenizer, self.settings
        ids = tokenizer.encode_prompt(settings.sample_prompt, "skip") or start_ids(tokenizer, self.text.n_documents)
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
        return TrainingText.of(self.text) if self.text.n_characters <= _MAX_INDEXED else None


def score_texts(
    parts: Sequence[Part], model: GPT, machine: Machine, max_tokens: int, **options: Any
) -> tuple[TextScore, list[TextScore]]:
    """The score of the validation parts together, weighted by the texts' shares at the end of the run, and that of
    each. `max_tokens` (0: all) are for all of them together; `options` are those of `score`."""
    most = -(-max_tokens // len(parts))
    found = [
        score(model, part.corpus.validation, part.corpus.tokenizer, machine, max_tokens=most, **options)
        for part in parts
    ]
    return mean_score(found, [part.end for part in parts]), found
