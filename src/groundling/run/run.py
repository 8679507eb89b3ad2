"""A run and what you can do with it: generate, evaluate, explain its curves, plot and report."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.acceleration.model_variants import ModelVariants
from groundling.acceleration.precision import Precision
from groundling.analysis.diagnosis import diagnose, standing, verdict
from groundling.analysis.history import History
from groundling.analysis.memorization import TrainingText
from groundling.config import Sampling
from groundling.data.corpus import Tokens, prepare
from groundling.data.sources import find_source
from groundling.data.tokenizers.base import Unknown
from groundling.evaluation.causality import sees_the_future
from groundling.evaluation.score import score
from groundling.evaluation.token_losses import TokenLoss, token_losses
from groundling.inference.stream import start_ids, stream
from groundling.reporting.plot import plot_curves
from groundling.reporting.run_facts import Facts
from groundling.reporting.run_page import run_page
from groundling.reporting.token_loss_page import loss_page
from groundling.run.folder import RunFolder
from groundling.run.run_text import RunText


class Run(RunFolder):
    """A trained (or half-trained) model in its folder: generate, evaluate, explain, report."""

    stopped_by: int | None = None
    """The signal that stopped `train` or `resume` early. None if training finished."""

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 300,
        stop: str | Sequence[str] = (),
        precision: Precision = "float32",
        unknown: Unknown = "error",
        **sampling: Any,
    ) -> str:
        """Generate text that continues `prompt`.

        `sampling` takes the fields of `Sampling` (temperature, top_k, seed, ...). On one device, the same checkpoint,
        prompt, seed and `precision` (acceleration/precision.py) give the same text. If the prompt is longer than the
        context, its end is used.

        Raises ValueError for a bad option, or if the model has no token for a character of `prompt`.
        """
        options: Any = {"stop": stop, "precision": precision, "unknown": unknown}
        return "".join(self.stream(prompt, Sampling(**sampling), max_new_tokens, **options))

    def stream(
        self,
        prompt: str,
        sampling: Sampling,
        max_new_tokens: int,
        *,
        stop: str | Sequence[str] = (),
        precision: Precision = "float32",
        unknown: Unknown = "error",
    ) -> Iterator[str]:
        """Like `generate`, but yields the text piece by piece."""
        if max_new_tokens < 0:
            raise ValueError(f"--max-new-tokens must be 0 or more, not {max_new_tokens}.")
        ids = self.prompt_ids(prompt, unknown)
        decoder = self.variants.decoder(precision)
        model, drafter = self.variants.model(precision), self.variants.drafter if decoder else None
        return stream(model, self.tokenizer, ids, max_new_tokens, sampling, stop, drafter, decoder)

    def prompt_ids(self, prompt: str = "", unknown: Unknown = "error") -> list[int]:
        """The token ids of `prompt`, at least one. An empty prompt gives those that start a document."""
        return self.tokenizer.encode(prompt, unknown) or start_ids(self.tokenizer, self.record.corpus.documents)

    @property
    def text(self) -> RunText:
        """The text that the run was trained on. Raises ValueError for an imported run, which has none."""
        if self.record.imported:
            raise ValueError(
                f"The run {self.name} was imported, without a text. Give one with --text, or train the model further "
                f"on one: `groundling train my.txt --init-from {self.reference}`."
            )
        return RunText(self.reference, self.record.corpus, self.config, self.tokenizer)

    @cached_property
    def variants(self) -> ModelVariants:
        """The model in each precision, with its fast decoders."""
        return ModelVariants(self.model)

    def evaluate(
        self,
        text: str | os.PathLike[str] | None = None,
        *,
        max_tokens: int | None = None,
        sliding: bool = False,
        html: str | os.PathLike[str] | None = None,
        html_tokens: int = 4000,
        unknown: Unknown = "error",
    ) -> dict[str, Any]:
        """Score the checkpoint on the run's validation part, or on `text` (a file, folder or corpus name).

        Args:
            max_tokens: at most this many tokens, evenly spread (0: all). Default: as in training, so that the result
                is the loss of the training log.
            sliding: overlapping windows; see evaluation/score.py.
            html: a page to write. It colors the first `html_tokens` tokens (0: all) by their loss.
            unknown: what to do with characters that the tokenizer does not know.

        Returns the fields of `Score`, `step` and `checkpoint`.
        """
        if html is not None:
            _check_place("--html", Path(html))
        tokens = self._tokens(text, unknown)
        if max_tokens is None:
            max_tokens = self.config.training.eval_tokens if text is None else 0
        result = score(self.model, tokens, self.tokenizer, self.machine, max_tokens=max_tokens, sliding=sliding)
        if html is not None:
            shown = _first(tokens, html_tokens)
            losses = token_losses(self.model, shown, self.tokenizer, self.machine, sliding=sliding)
            where = "its validation part" if text is None else os.fspath(text)
            title = f"{self.name}, step {self.step:,}, on {where}"
            first = self.tokenizer.decode(tokens.read(0, 1))
            page = loss_page(title, first, losses, result, len(tokens), self.tokenizer.vocab_size)
            storage.write_file(Path(html), page)
        return dataclasses.asdict(result) | {"step": self.step, "checkpoint": str(self.checkpoint)}

    def explain(self) -> dict[str, Any]:
        """Diagnose the run's curves. Returns JSON-ready values: `verdict` (a few sentences), `standing` (the loss among
        the n-gram baselines), and `findings`, each with kind, evidence and advice."""
        if self.record.imported:
            raise ValueError(f"The run {self.name} was imported, so there are no training curves to explain.")
        sees_future = bool(self.checkpoints.steps()) and sees_the_future(self.model)
        history = History.read(self.metrics(), self.config, sees_future)
        findings = diagnose(history)
        loss = float(history.validation.min()) if len(history.validation) else None
        return {
            "step": history.n_steps_done,
            "best_validation_loss": loss,
            "milestones": list(history.milestones),
            "standing": standing(loss, history.milestones) if loss is not None else "",
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "verdict": verdict(history),
        }

    def token_losses(
        self,
        text: str | os.PathLike[str] | None = None,
        *,
        max_tokens: int = 4000,
        sliding: bool = False,
        unknown: Unknown = "error",
    ) -> list[TokenLoss]:
        """The loss of each of the first `max_tokens` tokens (0: all) of the validation part, or of `text`."""
        tokens = _first(self._tokens(text, unknown), max_tokens)
        return token_losses(self.model, tokens, self.tokenizer, self.machine, sliding=sliding)

    def training_text(self, progress: Callable[[str, int, int], None] = lambda *_: None) -> TrainingText:
        """An index of the training part. Its method `report` finds what a sample copied from it.

        Raises ValueError if the text is gone, has changed, or has more than 100 MB.
        """
        corpus = self.text.open(progress=progress)
        return TrainingText.of(corpus, _document_names(self) if corpus.n_documents > 1 else (), progress)

    def _tokens(self, text: str | os.PathLike[str] | None, unknown: Unknown) -> Tokens:
        """The validation part, or all of `text`."""
        if text is None:
            return self.text.open().validation
        corpus = prepare(find_source(text), self.config.text, tokenizer=self.tokenizer, unknown=unknown)
        return dataclasses.replace(corpus.train, stop=corpus.validation.stop)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Draw the loss curve to `path` (default: `loss.png` in the run's folder). Returns the path."""
        target = Path(path) if path else self.folder / "loss.png"
        plot_curves({self.name: self.metrics()}, target)
        return target

    def report(self, path: str | os.PathLike[str] | None = None, *, originality: bool = True) -> Path:
        """Write the run's report, one HTML page, to `path` (default: `report.html` in its folder). Returns the path.

        With `originality`, samples that were not compared with the training text during training are compared now,
        if the text is still there. That takes seconds for a long text.

        Raises ValueError if no step was logged yet, or if `path` cannot be written.
        """
        target = Path(path) if path else self.folder / "report.html"
        _check_place("--to", target)
        samples, text = self.samples(), None
        if originality and any(sample.get("copied_spans") is None for sample in samples):
            with suppress(ValueError):  # the text is gone, has changed, or is too long
                text = self.training_text()
        facts = Facts(self.reference, self.record.to_dict(), self.config, self.metrics(), samples, self.result, text)
        storage.write_file(target, run_page(facts).encode("utf-8", "replace"))
        return target

    def __repr__(self) -> str:
        return f"Run({os.fspath(self.folder)!r})"


def _document_names(run: Run) -> list[str]:
    try:
        source = find_source(run.config.corpus, run.config.text.glob, stored=True)
    except (FileNotFoundError, ConnectionError):
        return []  # the text is gone, and the cache keeps no names
    return [document.name for document in source.documents]


def _check_place(option: str, path: Path) -> None:
    """Raise ValueError if no file can be written at `path`, before long work whose result would be lost."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{option} {path} cannot be written: it is a folder, or its folder does not exist.")


def _first(tokens: Tokens, n: int) -> Tokens:
    """The first token and the `n` predicted ones after it (0: all)."""
    if n < 0:
        raise ValueError(f"The number of tokens must be 1 or more, or 0 for all, not {n}.")
    return dataclasses.replace(tokens, stop=min(tokens.stop, tokens.start + n + 1)) if n else tokens
