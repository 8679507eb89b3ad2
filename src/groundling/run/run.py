"""A run and what you can do with it: generate, evaluate, explain its curves, plot and report."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.acceleration.model_variants import ModelVariants
from groundling.acceleration.precision import Precision
from groundling.analysis.diagnosis import diagnose, outcome, standing, verdict
from groundling.analysis.history import History
from groundling.analysis.memorization import TrainingText
from groundling.config import Sampling, limits
from groundling.data.characters import clean_command
from groundling.data.conversations import Message
from groundling.data.corpus import Corpus, prepare
from groundling.data.files import shown as shown_path
from groundling.data.mixture import Mixture, Text
from groundling.data.progress import Notice, Progress, silent
from groundling.data.sources import CorpusPath, find_source
from groundling.data.tokenizers.base import Unknown, UnknownText
from groundling.data.tokenizers.chat import ChatTokenizer, text_of_call
from groundling.data.tokens import Tokens
from groundling.escape import command
from groundling.evaluation.causality import sees_the_future
from groundling.evaluation.score import score
from groundling.evaluation.token_losses import TokenLoss, token_losses
from groundling.inference.chat import Chat, chat_messages
from groundling.inference.engine import Engine
from groundling.inference.example_prompt import example_prompt
from groundling.inference.stream import PromptTruncated, start_ids, stream
from groundling.machine import default_torch
from groundling.reporting.plot import plot_curves
from groundling.reporting.run_facts import Facts
from groundling.reporting.run_page import run_page
from groundling.reporting.token_loss_page import loss_page
from groundling.run.eject.eject import eject_run
from groundling.run.folder import RunFolder
from groundling.run.mixed import document_names, evaluate_mix
from groundling.run.position_losses import keep_position_losses, read_position_losses
from groundling.run.run_text import RunText
from groundling.run.share.share import share_run
from groundling.run.task_score import score_task
from groundling.training.events import VALIDATION_LOSS


class Run(RunFolder):
    """A trained (or half-trained) model in its folder: generate, evaluate, explain, report."""

    stopped_by: int | None = None
    """The signal that stopped `train` or `resume` early. None if training finished."""

    @default_torch()
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
        limits.TOKENS.check("--max-new-tokens", max_new_tokens)
        ids = self.prompt_ids(prompt, unknown)
        decoder = self.variants.decoder(precision)
        model, drafter = self.variants.model(precision), self.variants.drafter if decoder else None
        return stream(model, self.tokenizer, ids, max_new_tokens, sampling, stop, drafter, decoder)

    @default_torch()
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        max_new_tokens: int = 300,
        stop: str | Sequence[str] = (),
        precision: Precision = "float32",
        unknown: Unknown = "error",
        **sampling: Any,
    ) -> str:
        """Reply to `messages`, as the assistant. For runs that were tuned on conversations, or imported with a chat
        template:

            run.chat([{"role": "user", "content": "47+38="}], temperature=0)

        Messages and `tools` have the form of OpenAI's API, or are `Message` objects. Calls of the calculator are
        answered, up to a reply without one. Calls of other tools are returned as text, `<tool_call>...</tool_call>`.
        Older turns that do not fit into the context are left out, with a warning. `sampling` as for `generate`.

        Raises ValueError for a bad option or message, or if the model has no chat template.
        """
        limits.TOKENS.check("--max-new-tokens", max_new_tokens)
        chat = self.start_chat(
            lambda said: warnings.warn(said, PromptTruncated, stacklevel=4), messages, tools, precision, unknown
        )
        for _ in chat.reply(Sampling(**sampling), max_new_tokens, [stop] if isinstance(stop, str) else stop):
            pass
        reply = chat.messages[-1]
        return reply.content + "".join(f"<tool_call>{text_of_call(call)}</tool_call>" for call in reply.calls)

    def start_chat(
        self,
        notice: Notice,
        messages: Sequence[Message | Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        precision: Precision = "float32",
        unknown: Unknown = "error",
    ) -> Chat:
        """A conversation with the model that begins with `messages`, as for `chat`. Raises ValueError if it has no
        chat template."""
        if not isinstance(self.tokenizer, ChatTokenizer):
            tune = command("sft", self.reference, "chats.jsonl")
            raise ValueError(
                f"The run {self.name} has no chat template: it continues a text. Tune it on conversations first: "
                f"`{tune}`."
            )
        given = [] if messages is None else chat_messages(self.tokenizer, messages, tools, unknown)
        decoder = self.variants.decoder(precision)
        model, drafter = self.variants.model(precision), self.variants.drafter if decoder else None
        return Chat(
            self.tokenizer, model.config.block_size, lambda: Engine(model, drafter=drafter, decoder=decoder), notice,
            given, tools, unknown,
        )  # fmt: skip

    def prompt_ids(self, prompt: str = "", unknown: Unknown = "error") -> list[int]:
        """The token ids of `prompt`, at least one. An empty prompt gives those that start a document."""
        if not isinstance(prompt, str):
            raise TypeError(f"The prompt must be a str, not {type(prompt).__name__}.")
        return self.tokenizer.encode_prompt(prompt, unknown) or start_ids(self.tokenizer, self.record.corpus.documents)

    def example_prompt(self, room: int) -> str:
        """A prompt of at most `room` tokens that the model can read: a word of its text, or one that it generated."""
        text = (self.result or {}).get("prompt") or "".join(sample["text"] for sample in self.samples()[-1:])
        return example_prompt(text, self.tokenizer, room)

    @property
    def text(self) -> RunText:
        """The text that the run was trained on. Raises ValueError for an imported run, which has none."""
        if self.record.imported:
            raise ValueError(
                f"The run {self.name} was imported, without a text. To train it further on one, such as my.txt: "
                f"`{command('train', 'my.txt', '--init-from', self.reference)}`."
            )
        return RunText(self.reference, self.folder, self.record.corpus, self.config, self.tokenizer)

    @cached_property
    def variants(self) -> ModelVariants:
        """The model in each precision, with its fast decoders."""
        self.check_writes()
        return ModelVariants(self.model)

    @default_torch()
    def evaluate(
        self,
        text: CorpusPath | Sequence[CorpusPath] | None = None,
        *,
        max_tokens: int | None = None,
        sliding: bool = False,
        html: str | os.PathLike[str] | None = None,
        html_tokens: int = 4000,
        by_position: bool = False,
        unknown: Unknown = "error",
    ) -> dict[str, Any]:
        """Score the checkpoint on the run's validation part, or on `text` (files, folders or corpora, as for `train`).

        Args:
            max_tokens: at most this many tokens, evenly spread (0: all). Default: as in training, so that the result
                is the loss of the training log.
            sliding: overlapping windows; see evaluation/score.py.
            html: a page to write. It colors the first `html_tokens` tokens (0: all) by their loss.
            by_position: also measure the loss by how many tokens came before. `report` draws it.
            unknown: what to do with characters that the tokenizer does not know.

        Returns the fields of `Score`, `step`, `checkpoint`, and `notes`: what was read, and what is not counted. With
        `by_position` also `positions`: the loss of `tokens` tokens that had `first` to `last` tokens before them. Of
        a mix also `texts`, with name, share and loss of each; the rest are weighted means.
        """
        limits.TOKENS.check("--html-tokens", html_tokens)
        limits.TOKENS.check("--max-tokens", 0 if max_tokens is None else max_tokens)
        self.check_writes()
        page_file = storage.output_file("--html", html) if html is not None else None
        if text is None and self.config.mix is not None and page_file is None and not by_position:
            return evaluate_mix(self, self._text(), max_tokens, sliding)
        tokens, notes = self._tokens(text, unknown)
        if max_tokens is None:
            max_tokens = self.config.training.eval_tokens if text is None else 0
        result = score(self.model, tokens, self.tokenizer, self.machine, max_tokens=max_tokens, sliding=sliding)
        if page_file is not None:
            first_tokens = _first(tokens, html_tokens)
            losses = token_losses(self.model, first_tokens, self.tokenizer, self.machine, sliding=sliding)
            where = "its validation part" if text is None else ", ".join(map(shown_path, _listed(text)))
            title = f"{self.name}, step {self.step:,}, on {where}"
            first = self.tokenizer.decode(tokens.read(0, 1))
            page = loss_page(title, first, losses, result, len(tokens), self.tokenizer.vocab_size)
            storage.write_file(page_file, page)
        if text is not None and unknown == "skip" and self.tokenizer.normalizer:
            notes.append(f"The figures are about the text as the tokenizer changes it ({self.tokenizer.normalizer}).")
        about: dict[str, Any] = {"step": self.step, "checkpoint": str(self.checkpoint), "notes": notes}
        if by_position:
            groups = keep_position_losses(self, self.model, tokens, max_tokens)
            about["positions"] = [dataclasses.asdict(group) for group in groups]
        return dataclasses.asdict(result) | about

    evaluate_task = score_task
    eject = eject_run
    share = share_run

    def explain(self) -> dict[str, Any]:
        """Diagnose the run's curves. Returns JSON-ready values: `verdict` (a few sentences), `outcome` (what it
        reached, whatever its problems), `standing` (the loss among the n-gram baselines), and `findings`, each with
        kind, evidence and advice. `best_score` is the best value of `metric`."""
        if self.record.imported:
            raise ValueError(f"The run {self.name} was imported, so there are no training curves to explain.")
        sees_future = bool(self.checkpoints.steps()) and sees_the_future(self.model)
        history = History.read(self.metrics(), self.config, sees_future)
        findings = diagnose(history)
        loss = float(history.validation.min()) if len(history.validation) else None
        return {
            "step": history.n_steps_done,
            "best_validation_loss": loss,
            "metric": history.metric or VALIDATION_LOSS,
            "best_score": history.best_score,
            "milestones": list(history.milestones),
            "standing": standing(loss, history.milestones) if loss is not None else "",
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "outcome": outcome(history),
            "verdict": verdict(history),
        }

    @default_torch()
    def token_losses(
        self,
        text: CorpusPath | Sequence[CorpusPath] | None = None,
        *,
        max_tokens: int = 4000,
        sliding: bool = False,
        unknown: Unknown = "error",
    ) -> list[TokenLoss]:
        """The loss of each of the first `max_tokens` tokens (0: all) of the validation part, or of `text`."""
        limits.TOKENS.check("max_tokens", max_tokens)
        tokens = _first(self._tokens(text, unknown)[0], max_tokens)
        return token_losses(self.model, tokens, self.tokenizer, self.machine, sliding=sliding)

    def training_text(self, progress: Progress = silent) -> TrainingText:
        """An index of the training part. Its method `report` finds what a sample copied from it.

        Raises ValueError if the text is gone, has changed, or has more than 100 MB.
        """
        text = self._text(progress)
        return TrainingText.of(text, document_names(self.config, text) if text.n_documents > 1 else (), progress)

    def _text(self, progress: Progress = silent) -> Text:
        """The text of pretraining, or the mixture."""
        text = self.text.open(progress=progress)
        if not isinstance(text, Corpus | Mixture):
            raise ValueError(
                f"The run {self.name} was trained on {self.config.task} data, not on a text. Give one with --text."
            )
        return text

    def _tokens(self, text: CorpusPath | Sequence[CorpusPath] | None, unknown: Unknown) -> tuple[Tokens, list[str]]:
        """The validation part, or all of `text`, and sentences about what was read."""
        if text is None:
            if self.record.imported:
                raise ValueError(f"The run {self.name} was imported, without a text. Give one with --text.")
            if isinstance(found := self._text(), Mixture):
                raise ValueError(f"The run {self.name} mixes {len(found.parts)} texts. Give one of them with --text.")
            return found.validation, []
        settings, notes = dataclasses.replace(self.config.text, glob=None, format="auto"), list[str]()
        try:
            source = find_source(text, settings)
            corpus = prepare(source, settings, tokenizer=self.tokenizer, unknown=unknown, notice=notes.append)
        except UnknownText as error:
            form = next((form for form in ("NFC", "NFD") if f"Unicode form {form}" in str(error)), None)
            files = [path for path in _listed(text) if os.path.isfile(path)]
            if form is None or len(files) != 1:
                raise
            raise UnknownText(f"{error} To write a converted copy: `{clean_command(files[0], form)}`.") from None
        left_out = corpus.count_left_out() if unknown == "skip" else 0
        if left_out > 0:
            notes.append(f"{left_out:,} characters of the text were dropped (--unknown skip), so nothing counts them.")
        return dataclasses.replace(corpus.train, stop=corpus.validation.stop), notes

    def plot(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Draw the loss curve to `path` (default: `loss.png` in the run's folder). Returns the path."""
        target = storage.output_file("--to", self.folder / "loss.png" if path is None else path)
        plot_curves({self.name: self.metrics()}, target)
        return target

    def report(self, path: str | os.PathLike[str] | None = None, *, originality: bool = True) -> Path:
        """Write the run's report, one HTML page, to `path` (default: `report.html` in its folder). Returns the path.

        With `originality`, samples that were not compared with the training text during training are compared now,
        if the text is still there. That takes seconds for a long text.

        Raises ValueError if no step was logged yet, or if `path` cannot be written.
        """
        target = storage.output_file("--to", self.folder / "report.html" if path is None else path)
        samples, text = self.samples(), None
        unknown = any(sample.get("copied_spans") is None for sample in samples)
        # What was tuned has conversations, or replies of its own.
        if originality and unknown and self.config.task == "pretraining":
            with suppress(ValueError):  # the text is gone, has changed, or is too long
                text = self.training_text()
        files = (self.record.to_dict(), self.config, self.metrics(), samples, self.result)
        facts = Facts(self.reference, *files, text, self.replies(), read_position_losses(self.folder))
        storage.write_file(target, run_page(facts).encode("utf-8", "replace"))
        return target

    def __repr__(self) -> str:
        return f"Run({os.fspath(self.folder)!r})"


def _listed(paths: CorpusPath | Sequence[CorpusPath]) -> Sequence[CorpusPath]:
    return [paths] if isinstance(paths, str | os.PathLike) else paths


def _first(tokens: Tokens, n: int) -> Tokens:
    """The first token and the `n` predicted ones after it (0: all)."""
    return dataclasses.replace(tokens, stop=min(tokens.stop, tokens.start + n + 1)) if n else tokens
