"""The corpus check-up: what can be known about a text before training."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from groundling.analysis import ngrams
from groundling.checkup.characters import Characters, describe
from groundling.checkup.duplicates import Duplicates, duplicates
from groundling.checkup.leakage import Leakage, leakage
from groundling.checkup.text import Text
from groundling.config import CorpusSettings
from groundling.data.corpus import Corpus, prepare
from groundling.data.progress import Notice, Progress
from groundling.data.sources import Source


@dataclass(frozen=True)
class Milestone:
    """The loss of an n-gram model on the validation part. `order` 0 is the uniform model."""

    order: int
    name: str
    loss: float  # nats per token
    bits_per_byte: float


@dataclass(frozen=True)
class Milestones:
    """The n-gram baselines by order, and how many tokens they were counted and evaluated on."""

    smoothing: str
    models: tuple[Milestone, ...]
    best: str  # the name of the model with the lowest loss
    training_tokens_read: int
    validation_tokens_read: int


@dataclass(frozen=True)
class Tokenization:
    """The text as tokens, in its two parts."""

    tokenizer: str
    vocab_size: int
    training_tokens: int
    validation_tokens: int
    characters_per_token: float
    bigrams_possible: int
    bigrams_present: int


@dataclass(frozen=True)
class Recommendation:
    """What to train in the given time, and why. Losses are in nats per token, as the text was tokenized."""

    minutes: float
    tokenizer: str
    vocab_size: int
    parameters: int
    model: dict[str, Any]
    steps: int
    epochs: float
    expected_loss: tuple[float, float, float]  # low, most likely, high
    memorises_after_epochs: float
    memorises_after_steps: int
    command: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The check-up of one text."""

    name: str
    documents: int
    text: Characters
    tokens: Tokenization
    milestones: Milestones
    duplicates: Duplicates
    leakage: Leakage
    recommendation: Recommendation | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return value


def examine(source: Source, settings: CorpusSettings, notice: Notice, progress: Progress) -> tuple[Report, Corpus]:
    """The check-up without a recommendation, and the text as tokens.

    Raises ValueError with a message for the user if the text is empty, undecodable or too short.
    """
    corpus = prepare(source, settings, notice=notice, progress=progress)
    if min(len(corpus.train), len(corpus.validation)) < 2:  # one token predicts the other
        raise ValueError(
            f"The text has {corpus.n_characters} character(s), too few for a training and a validation part. "
            "Use a longer text."
        )
    by_character = dataclasses.replace(settings, tokenizer="char")
    text = Text(corpus if settings == by_character else prepare(source, by_character), source, progress)
    report = Report(
        name=source.name,
        documents=corpus.n_documents,
        text=describe(text),
        tokens=_tokenization(corpus),
        milestones=_milestones(corpus, progress),
        duplicates=duplicates(text),
        leakage=leakage(text),
    )
    return report, corpus


def _tokenization(corpus: Corpus) -> Tokenization:
    vocab_size = corpus.tokenizer.vocab_size
    whole = dataclasses.replace(corpus.train, stop=corpus.validation.stop)
    return Tokenization(
        tokenizer=corpus.tokenizer.kind,
        vocab_size=vocab_size,
        training_tokens=len(corpus.train),
        validation_tokens=len(corpus.validation),
        characters_per_token=corpus.n_characters / (len(whole) - corpus.n_eos),
        bigrams_possible=(vocab_size - bool(corpus.n_eos)) ** 2,
        bigrams_present=ngrams.bigrams(whole, vocab_size, corpus.tokenizer.end_of_text_id),
    )


def _milestones(corpus: Corpus, progress: Progress) -> Milestones:
    train, validation = corpus.train, corpus.validation
    losses = ngrams.ngram_losses(train, validation, corpus.tokenizer.vocab_size, progress=progress)
    read = ngrams.spread(validation, ngrams.VALIDATION_TOKENS)
    n_bytes = max(len(corpus.tokenizer.decode(read.tolist()).encode()), 1)
    models = tuple(
        Milestone(n, f"{n}-gram" if n else "uniform", loss, ngrams.bits_per_byte(loss, len(read), n_bytes))
        for n, loss in enumerate(losses)
    )
    return Milestones(
        smoothing="interpolated Witten-Bell",
        models=models,
        best=min(models, key=lambda model: model.loss).name,
        training_tokens_read=min(len(train), ngrams.TRAINING_TOKENS),
        validation_tokens_read=len(read),
    )
