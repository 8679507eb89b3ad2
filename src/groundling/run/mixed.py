"""What a run that mixes several texts says about each of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from groundling.analysis.memorization import training_documents
from groundling.config import Config
from groundling.data.mixture import Mixture, Text, parts_of
from groundling.data.sources import find_source
from groundling.run.folder import RunFolder
from groundling.tasks.pretraining import score_texts


def evaluate_mix(run: RunFolder, text: Text, max_tokens: int | None, sliding: bool) -> dict[str, Any]:
    """Score the checkpoint on the validation part of each text, at most `max_tokens` tokens in all. The other arguments
    and the result are those of `Run.evaluate`, with a list of `texts`: name, share at the end of the run, and loss."""
    parts, most = parts_of(text), run.config.training.eval_tokens if max_tokens is None else max_tokens
    mean, scores = score_texts(parts, run.model, run.machine, most, sliding=sliding)
    texts = [
        {"name": part.name, "share": part.end, "loss": found.loss} for part, found in zip(parts, scores, strict=True)
    ]
    about = {"step": run.step, "checkpoint": str(run.checkpoint), "notes": [], "texts": texts}
    return dataclasses.asdict(mean) | about


def document_names(config: Config, text: Text) -> list[str]:
    """The names of the documents of all training parts. Empty if the text is gone, since the cache keeps no names."""
    try:
        source = find_source(config.corpus, config.text, stored=True)
    except (FileNotFoundError, ConnectionError):
        return []
    sources = source.parts if isinstance(text, Mixture) else [source]
    return [
        part.corpus.document_name(each, i)
        for each, part in zip(sources, parts_of(text), strict=True)
        for i in range(training_documents(part.corpus))
    ]
