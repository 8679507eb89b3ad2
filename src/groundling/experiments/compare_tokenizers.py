"""Compare tokenizers on one text: compression, cost in parameters, and what a model learns with each."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from functools import cache
from typing import Any

from groundling.analysis.ngrams import bigrams
from groundling.config import PRESETS, CorpusSettings, limits
from groundling.data.corpus import Corpus, prepare
from groundling.data.progress import Notice, Progress, silent
from groundling.data.sources import CorpusPath, find_source
from groundling.model.describe import matrix_parameters
from groundling.run.train import train
from groundling.training.events import Subscriber

WORKSHOP = {"Tiny Shakespeare's characters": 65, "GPT-2's tokens": 50_257}


def compare_tokenizers(
    corpus: CorpusPath | Sequence[CorpusPath] | None = None,
    *,
    vocab_sizes: Sequence[int] = (512, 2048, 8192),
    n_embd: int = 384,
    minutes: float | None = None,
    notice: Notice = silent,
    progress: Progress = silent,
    on_event: Subscriber | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Compare characters, bytes and BPEs of several sizes on one text.

    Args:
        corpus: as for `train`.
        vocab_sizes: maximum vocabularies of the BPEs. A size that the text is too short for is left out.
        n_embd: the width of the model whose parameters are counted. It has 6 layers, like the preset workshop.
        minutes: train a model with each tokenizer for this long, in a temporary folder, and report `bits_per_byte` on
            the validation part, which begins at the same character for all.
        on_event: called with the events of those runs. Default: the console display.
        reading: settings of the files: `glob`, `format`, `field`, `document_separator`.

    Returns JSON-ready values: `corpus`, `characters`, `n_embd`, and two lists. Each of `tokenizers` has `tokenizer`,
    `vocabulary`, `tokens`, `characters_per_token`, `embedding_parameters` and their `embedding_share` of the model,
    `bigrams_possible` and `bigrams_present`; with `minutes` also `bits_per_byte`, `model_parameters` and `steps`.
    Each of `workshop` has the embedding's size with Tiny Shakespeare's characters and with GPT-2's vocabulary.

    Raises ValueError or OSError with a sentence for the user.
    """
    limits.WIDTH.check("--n-embd", n_embd)
    for size in vocab_sizes:
        limits.VOCAB_SIZE.check("--vocab-sizes", size)
    if minutes is not None:
        limits.MINUTES.check("--minutes", minutes)
    notice = cache(notice)  # the text is read once for each tokenizer
    source = find_source(corpus if corpus is not None else "shakespeare", CorpusSettings(**reading))
    wanted = [("char", CorpusSettings.vocab_size), ("byte", CorpusSettings.vocab_size)]
    wanted += [("bpe", size) for size in sorted(set(vocab_sizes))]
    rows: list[dict[str, Any]] = []
    compared: list[CorpusSettings] = []
    for kind, size in wanted:
        settings = CorpusSettings(tokenizer=kind, vocab_size=size, **reading)
        text = prepare(source, settings, notice=notice, progress=progress)
        if kind == "bpe" and rows[-1]["vocabulary"] == text.tokenizer.vocab_size:
            continue  # the text is too short even for the size before
        compared.append(settings)
        rows.append({"tokenizer": kind} | _figures(text, n_embd))
    if minutes is not None:
        for row, settings in zip(rows, compared, strict=True):
            row.update(_trained(source.addresses, settings, minutes, on_event))
    return {
        "corpus": source.name,
        "characters": text.n_characters,
        "n_embd": n_embd,
        "tokenizers": rows,
        "workshop": [{"text": name} | _embedding(size, n_embd) for name, size in WORKSHOP.items()],
    }


def _figures(text: Corpus, n_embd: int) -> dict[str, Any]:
    vocab_size = text.tokenizer.vocab_size
    whole = dataclasses.replace(text.train, stop=text.validation.stop)
    return _embedding(vocab_size, n_embd) | {
        "tokens": len(whole),
        "characters_per_token": text.n_characters / (len(whole) - text.n_eos),
        "bigrams_possible": (vocab_size - bool(text.n_eos)) ** 2,
        "bigrams_present": bigrams(whole, vocab_size, text.tokenizer.end_of_text_id),
    }


def _embedding(vocab_size: int, n_embd: int) -> dict[str, Any]:
    """The cost of a vocabulary in a model of 6 layers, whose output head shares the embedding's weights."""
    model = dataclasses.replace(PRESETS["workshop"].model, n_embd=n_embd, n_head=1)  # heads change no count
    return {
        "vocabulary": vocab_size,
        "embedding_parameters": vocab_size * n_embd,
        "embedding_share": vocab_size * n_embd / matrix_parameters(model, vocab_size),
    }


def _trained(
    corpus: Sequence[str], settings: CorpusSettings, minutes: float, on_event: Subscriber | None
) -> dict[str, Any]:
    """Train for `minutes` with the tokenizer of `settings`, and evaluate the model."""
    with tempfile.TemporaryDirectory(prefix="groundling-") as folder:
        run = train(corpus, out=folder, minutes=minutes, on_event=on_event, **dataclasses.asdict(settings))
        if run.stopped_by is not None:
            raise KeyboardInterrupt
        assert run.result is not None
        return {
            "bits_per_byte": run.evaluate()["bits_per_byte"],
            "model_parameters": sum(p.numel() for p in run.model.parameters()),
            "steps": run.result["step"],
        }
