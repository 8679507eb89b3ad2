"""The samples during training, and how much of each was copied from the training text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from groundling.analysis.memorization import TrainingText
from groundling.config import TrainingSettings
from groundling.data.corpus import Corpus
from groundling.evaluation.score import Interrupted
from groundling.inference.sampling import Sampling
from groundling.inference.stream import beginning, stream
from groundling.model.gpt import GPT
from groundling.training.events import Sample

_SEED = 1  # always the same, so that samples can be compared
_MAX_CHARACTERS = 10_000_000  # of the text: a longer one would take seconds of the training time to index


class Samples:
    """Lets `model` write, always from the same prompt and seed, and compares that with the training text.

    Raises Interrupted once `stopped()` says so.
    """

    def __init__(self, model: GPT, corpus: Corpus, settings: TrainingSettings, stopped: Callable[[], bool]) -> None:
        self._model, self._corpus, self._settings, self._stopped = model, corpus, settings, stopped

    def __call__(self, step: int) -> Sample:
        tokenizer, settings = self._corpus.tokenizer, self._settings
        ids = tokenizer.encode(settings.sample_prompt, "skip") or beginning(tokenizer, self._corpus.n_documents)
        pieces: list[str] = []
        for piece in stream(self._model, tokenizer, ids, settings.sample_tokens, Sampling(seed=_SEED)):
            if self._stopped():
                raise Interrupted
            pieces.append(piece)
        text = "".join(pieces)
        prompt = tokenizer.decode(ids)
        if self._training_text is None:
            return Sample(step, prompt, text)
        found = self._training_text.report(text)
        spans = [(span.start, span.stop) for span in found.spans]
        return Sample(step, prompt, text, found.share, found.longest, spans)

    @cached_property
    def _training_text(self) -> TrainingText | None:
        """Indexed when the first sample is there, and None for a text that would take long."""
        return TrainingText.of(self._corpus) if self._corpus.n_characters <= _MAX_CHARACTERS else None
