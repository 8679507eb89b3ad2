"""The corpus check-up with a recommendation: what to train on a text in the given time, and why."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from groundling import storage
from groundling.checkup.first_entry import holds_conversations
from groundling.checkup.page import page
from groundling.checkup.report import Recommendation, Report, examine
from groundling.config import Config, limits
from groundling.data.corpus import Corpus
from groundling.data.sources import CorpusPath, find_source
from groundling.escape import command
from groundling.reporting.console import Console
from groundling.training.events import Planned, Subscriber, reporters

DEFAULT_MINUTES = 5.0
_FEW_CHARACTERS = 256  # an alphabet up to this size needs no tokenizer
_SHORT_TEXT = 10_000_000  # characters; up to here, tokens of several characters are too rare to learn
_SEEN = 1000  # how often a token should occur in the text, on average
_CHARACTERS_PER_PIECE = 4  # of a BPE token, roughly


def inspect(
    corpus: CorpusPath | Sequence[CorpusPath],
    *,
    minutes: float = DEFAULT_MINUTES,
    html: str | os.PathLike[str] | None = None,
    on_event: Subscriber | None = None,
    **settings: Any,
) -> Report:
    """Check a text before training: contents, duplicates, leakage, n-gram baselines, and a recommended model.

    Args:
        corpus: as for `train`.
        minutes: the training time. The recommendation is for it and for this machine.
        html: a file to write the report to, as one self-contained page.
        on_event: called with progress events. None shows them on standard error.
        settings: any setting of `groundling.config`, as for `train`.

    Raises ValueError or OSError with a message for the user.
    """
    limits.MINUTES.check("--minutes", minutes)
    config = Config.build("", None, minutes=minutes, **settings)
    page_file = storage.output_file("--html", html) if html is not None else None
    with ExitStack() as stack:
        emit = on_event if on_event is not None else stack.enter_context(Console(sys.stderr))
        notice, progress = reporters(emit)
        files = [corpus] if isinstance(corpus, str | os.PathLike) else corpus
        if holds_conversations(corpus, config.text):
            notice(
                f"{os.fspath(files[0])} has conversations, pairs or prompts. To see what a run would learn of them: "
                f"`{command('inspect', *files, '--with', 'RUN')}`."
            )
        source = find_source(corpus, config.text)
        config = dataclasses.replace(config, corpus=source.corpus)
        report, text = examine(source, config.text, notice, progress)
        if len(text.train) > config.model.block_size:
            advice = _recommend(report, config, settings.keys() | {"minutes"}, text)
            report = dataclasses.replace(report, recommendation=advice)
    if page_file is not None:
        storage.write_file(page_file, page(report))
    return report


def _recommend(report: Report, config: Config, given: set[str], text: Corpus) -> Recommendation:
    # torch is imported only now, so that its memory comes after that of the check-up.
    from groundling.machine import choose
    from groundling.planning.planner import plan as plan_run

    planned, plan = plan_run(config, given, text, choose(config.machine), 0.0)
    assert plan is not None and plan.loss is not None and plan.low is not None and plan.high is not None
    tokens, read = len(text.train), report.tokens.tokenizer
    kind, vocab_size, why = choose_tokenizer(report)
    dropout = planned.model.dropout
    epochs = memorising_begins(plan.parameters, tokens, dropout)
    chosen = dataclasses.replace(config.text, tokenizer=kind, vocab_size=max(vocab_size, 257))
    wanted = dataclasses.replace(config, text=chosen).text_arguments
    reasons = [why]
    if kind != read:
        reasons.append(
            f"Size, steps and loss here are for {read} tokens. `--tokenizer {kind}` shows those for {kind} tokens."
        )
    reasons += [
        f"{plan.parameters / 1e6:.2f} million parameters, {plan.parameters / tokens:.2g} for each of the {tokens:,} "
        "training tokens: the size that learned most in such a time when we measured it (docs/LOG.md), at the speed of "
        "this machine.",
        _why_these_epochs(plan, epochs, dropout),
    ]
    return Recommendation(
        minutes=plan.minutes,
        tokenizer=kind,
        vocab_size=vocab_size,
        parameters=plan.parameters,
        model=plan.model,
        steps=plan.steps,
        epochs=plan.epochs,
        expected_loss=(plan.low, plan.loss, plan.high),
        memorises_after_epochs=epochs,
        memorises_after_steps=int(float(f"{epochs * tokens / planned.tokens_per_step:.2g}")),  # known to two digits
        command=command("train", *wanted, "--minutes", f"{plan.minutes:g}"),
        reasons=tuple(reasons),
    )


def choose_tokenizer(report: Report) -> tuple[str, int, str]:
    """Kind, vocabulary size, and a sentence with the reason."""
    alphabet, characters = report.text.alphabet, report.text.characters
    often = characters / max(alphabet, 1)
    if characters < _SHORT_TEXT and (alphabet <= _FEW_CHARACTERS or often >= _SEEN):
        why = (
            f"Characters as tokens: the text has {alphabet:,} different ones, and each occurs {often:,.0f} times on "
            "average. Longer tokens pay off in longer texts (rule of thumb: from "
            f"{_SHORT_TEXT / 1e6:.0f} million characters)."
        )
        return "char", report.tokens.vocab_size if report.tokens.tokenizer == "char" else alphabet, why
    size = min(2 ** int(math.log2(max(characters / _CHARACTERS_PER_PIECE / _SEEN, 512))), 32_768)
    why = (
        f"Byte-level BPE with {size:,} tokens: the text has {characters / 1e6:,.1f} million characters, {alphabet:,} "
        f"different ones, so each token occurs about {_SEEN:,} times or more (rule of thumb)."
    )
    return "bpe", size, why


def memorising_begins(parameters: int, tokens: int, dropout: float) -> float:
    """The epochs after which the validation loss starts to rise, within a factor of about two.

    A rule of thumb from a few runs in docs/LOG.md: 16 epochs at one parameter per token, divided by the cube root of
    that ratio, and longer by six times the dropout.
    """
    return 16 / (parameters / tokens) ** (1 / 3) * (1 + 6 * dropout)


def _why_these_epochs(plan: Planned, epochs: float, dropout: float) -> str:
    if plan.generations > 1:
        then = f" in {plan.generations} generations: a model with a teacher memorizes the text far later."
    elif plan.epochs > epochs:
        then = ": more text would help more than more time."
    else:
        then = ", so it ends before that."
    return (
        f"With dropout {dropout:g}, a model of this size starts to memorize this text after about {epochs:.0f} epochs "
        f"(a rule of thumb: it may be half or twice as many). The plan has {plan.epochs:,.1f} epochs{then}"
    )
