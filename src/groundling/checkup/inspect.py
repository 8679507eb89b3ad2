"""The corpus check-up with advice: what to train on a text in the time there is, and why."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.checkup.page import page
from groundling.checkup.report import Recommendation, Report, examine
from groundling.config import Config
from groundling.data.corpus import Corpus
from groundling.data.sources import find_source
from groundling.reporting.console import Console
from groundling.training.events import Planned, Subscriber, reporters

DEFAULT_MINUTES = 5.0
_FEW_CHARACTERS = 256  # an alphabet of no more is no burden
_SHORT_TEXT = 10_000_000  # characters up to which tokens of several have too little to be learned from
_SEEN = 1000  # how often a token should stand in the text, on average
_CHARACTERS_PER_PIECE = 4  # of a BPE token, roughly


def inspect(
    corpus: str | os.PathLike[str],
    *,
    minutes: float = DEFAULT_MINUTES,
    html: str | os.PathLike[str] | None = None,
    on_event: Subscriber | None = None,
    **settings: Any,
) -> Report:
    """Look a text over before anything is trained on it, and recommend what to train.

    Args:
        corpus: a file, a folder, `-`, `shakespeare` or `python-docs`.
        minutes: the time that there is for training; the recommendation is made for it and for this machine.
        html: a file to write the report to as well, as one page that needs no others.
        on_event: who is told how far it is; shown on standard error if None.
        settings: any field of the settings in `groundling.config`, as for `train`.

    Raises ValueError or OSError with a sentence for the user.
    """
    address = os.fspath(corpus)
    config = Config.build(address, None, minutes=minutes, **settings)
    if not minutes:
        raise ValueError("--minutes must be above 0: say how long the training may take.")
    if html is not None and not Path(html).resolve().parent.is_dir():
        raise ValueError(f"--html {html}: the folder {Path(html).resolve().parent} does not exist.")
    with ExitStack() as stack:
        emit = on_event if on_event is not None else stack.enter_context(Console(sys.stderr))
        report, text = examine(
            find_source(address, config.text.glob),
            config.text,
            *reporters(emit),
        )
        if len(text.train) > config.model.block_size:
            advice = _recommend(report, config, settings.keys() | {"minutes"}, text)
            report = dataclasses.replace(report, recommendation=advice)
    if html is not None:
        storage.write_file(Path(html).resolve(), page(report))
    return report


def _recommend(report: Report, config: Config, given: set[str], text: Corpus) -> Recommendation:
    # torch is imported this late so that its memory comes after that of the check-up.
    from groundling.machine import choose
    from groundling.planning.planner import plan as plan_run

    planned, plan = plan_run(config, given, text, choose(config.machine), 0.0)
    assert plan is not None and plan.loss is not None and plan.low is not None and plan.high is not None
    tokens = len(text.train)
    kind, vocab_size, why = choose_tokenizer(report)
    dropout = planned.model.dropout
    passes = memorising_begins(plan.parameters, tokens, dropout)
    flags = f" --tokenizer {kind} --vocab-size {vocab_size}" if kind == "bpe" else ""
    return Recommendation(
        minutes=plan.minutes,
        tokenizer=kind,
        vocab_size=vocab_size,
        parameters=plan.parameters,
        model=plan.model,
        steps=plan.steps,
        epochs=plan.epochs,
        expected_loss=(plan.low, plan.loss, plan.high),
        memorises_after_epochs=passes,
        memorises_after_steps=int(float(f"{passes * tokens / planned.tokens_per_step:.2g}")),  # no more is known
        command=f"groundling train {shlex.quote(config.corpus)} --minutes {plan.minutes:g}{flags}",
        reasons=(
            why,
            *_read_otherwise(report, kind),
            _why_this_size(plan, tokens),
            _why_then(plan, passes, dropout),
        ),
    )


def choose_tokenizer(report: Report) -> tuple[str, int, str]:
    """Kind, size of the vocabulary, and a sentence that says why."""
    alphabet, characters = report.text.alphabet, report.text.characters
    often = characters / max(alphabet, 1)
    short = characters < _SHORT_TEXT
    if short and (alphabet <= _FEW_CHARACTERS or often >= _SEEN):
        said = f"Characters: {alphabet:,} of them, each standing {often:,.0f} times in the text on average"
        if short:
            said += f"; longer tokens pay on longer texts (rule of thumb: from {_SHORT_TEXT / 1e6:.0f} million on)"
        return "char", report.tokens.vocab_size if report.tokens.tokenizer == "char" else alphabet, said + "."
    size = 2 ** int(math.log2(max(characters / _CHARACTERS_PER_PIECE / _SEEN, 512)))
    size = min(size, 32_768)
    return (
        "bpe",
        size,
        f"Byte-level BPE with {size:,} tokens: the text has {characters / 1e6:,.1f} million characters, {alphabet:,} "
        f"different ones, and each token of so many would stand there about {_SEEN:,} times or more (rule of thumb).",
    )


def memorising_begins(parameters: int, tokens: int, dropout: float) -> float:
    """After how many passes over a text of so many tokens the validation loss turns, within a factor of two or so.

    A rule of thumb from the handful of runs in docs/LOG.md: 16 passes at one parameter a token, fewer by the cube root
    of that ratio, and more by six times the dropout.
    """
    return 16 / (parameters / tokens) ** (1 / 3) * (1 + 6 * dropout)


def _read_otherwise(report: Report, kind: str) -> list[str]:
    read = report.tokens.tokenizer
    if kind == read:
        return []
    return [
        f"Size, steps and loss here are for the {read} tokens that the text was read with; `--tokenizer {kind}` "
        "tells them for those."
    ]


def _why_this_size(plan: Planned, tokens: int) -> str:
    return (
        f"{plan.parameters / 1e6:.2f} million parameters, {plan.parameters / tokens:.2g} for each of the "
        f"{tokens:,} tokens to train on: what learned most in such a time when it was measured "
        f"(docs/LOG.md), and what this machine can do in it."
    )


def _why_then(plan: Planned, passes: float, dropout: float) -> str:
    what = f"With dropout {dropout:g}, a model of this size begins to learn this text by heart after about "
    much = f"{passes:.0f} passes (a rule of thumb: it may be half or twice as many)"
    if plan.generations > 1:
        later = f"in {plan.generations} generations: a model that another one teaches learns it by heart far later"
        return what + much + f"; the plan makes {plan.epochs:.2g} {later}."
    if plan.epochs > passes:
        return what + much + f"; the plan makes {plan.epochs:.2g}: more text would help, more time hardly."
    return what + much + f"; the plan makes {plan.epochs:.2g}, so it ends before that."
