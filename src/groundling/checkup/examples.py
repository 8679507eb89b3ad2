"""The check-up of conversations, pairs or prompts before training: what a model will read and learn of them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from groundling.checkup.findings import Finding
from groundling.checkup.first_entry import first_entry
from groundling.checkup.painting import PaintedExample, paint
from groundling.config import CorpusSettings
from groundling.config.methods import GrpoSettings, training_defaults
from groundling.data.conversations import Conversation, Message, Preference, Row, read_conversations
from groundling.data.examples import Dataset, Kind, examples_of, most_tokens, rendered
from groundling.data.progress import Progress, silent
from groundling.data.sources import CorpusPath, find_source
from groundling.data.tokenizers.base import UnknownText
from groundling.data.tokenizers.chat import MARKUP, ChatTokenizer, text_of_call
from groundling.escape import printable

METHODS: dict[Kind, str] = {"conversations": "sft", "preferences": "dpo", "prompts": "grpo"}
"""The command that trains on each kind."""
NOUNS: dict[Kind, str] = {"conversations": "conversation", "preferences": "pair", "prompts": "prompt"}
_LITTLE, _SAME, _BIAS, _FEW = 0.05, 0.2, 0.65, 20


@dataclass(frozen=True)
class Lengths:
    """In tokens, uncut."""

    median: int
    longest: int
    cut: int
    """How many examples are longer than the model's context."""


@dataclass(frozen=True)
class Pairs:
    """Length and the preferred reply. `longer_wins` is the accuracy of always preferring the longer reply."""

    median_chosen: int
    median_rejected: int
    longer_wins: float
    same_when_cut: int


@dataclass(frozen=True)
class ExamplesReport:
    """The check-up. Counts of `unknown` are characters that the model has no token for, most frequent first."""

    name: str
    kind: Kind
    fields: tuple[str, ...]
    """Of the first entry."""
    rows: int
    training: int
    validation: int
    left_out: int
    context: int
    tokens: int
    learned: float
    lengths: Lengths
    pairs: Pairs | None
    roles: dict[str, int]
    turns: int
    """Of the assistant in a conversation, at most."""
    calls: dict[str, int]
    unknown: dict[str, int]
    unknown_first: str
    repeats: int
    shared_replies: float
    batch_size: int
    steps_per_epoch: int
    notes: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    painted: tuple[PaintedExample, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return value


def check_examples(
    data: CorpusPath | Sequence[CorpusPath],
    settings: CorpusSettings,
    tokenizer: ChatTokenizer,
    block_size: int,
    n_painted: int = 3,
    progress: Progress = silent,
) -> ExamplesReport:
    """Check files of conversations, pairs or prompts as a model with this tokenizer and context would read them.

    Raises ValueError or OSError with a sentence for the user, such as when there is nothing to learn.
    """
    source, notes = find_source(data, settings, entries=True), list[str]()
    rows = list(read_conversations(source, settings, notes.append, progress))
    kind = _kind_of(rows)
    dataset = examples_of(
        rows, source.name, tokenizer, block_size, kind, settings.val_fraction, [*source.notices, *notes]
    )
    counted = _Counted(tokenizer, kind, block_size)
    for row in rows:
        counted.add(row)
    report = _report(dataset, counted, tuple(first_entry(source) or ()), len(rows))
    painted = (paint(rows[i], kind, tokenizer, block_size) for i in counted.chosen(n_painted))
    return dataclasses.replace(report, findings=tuple(_findings(report, counted)), painted=tuple(painted))


def _kind_of(rows: Sequence[Row]) -> Kind:
    if rows and all(isinstance(row, Preference) for row in rows):
        return "preferences"
    replied = any(isinstance(row, Preference) or any(m.role == "assistant" for m in row.messages) for row in rows)
    return "conversations" if replied or not rows else "prompts"


def _messages(row: Row) -> tuple[Message, ...]:
    """With the chosen reply of a pair."""
    return row.messages if isinstance(row, Conversation) else (*row.prompt, *row.chosen)


@dataclass
class _Counted:
    """What is counted row by row."""

    tokenizer: ChatTokenizer
    kind: Kind
    block_size: int
    roles: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    unknown_first: str = ""
    turns: int = 0
    unanswered: int = 0
    with_markup: int = 0
    lengths: list[int] = field(default_factory=list)
    reply_lengths: list[tuple[int, ...]] = field(default_factory=list)
    same_when_cut: int = 0
    _fit: list[tuple[bool, bool, int]] = field(default_factory=list)
    """Whether it is whole, whether it calls nothing, and the row: of rows that can be painted."""
    _n: int = 0

    def add(self, row: Row) -> None:
        number, self._n = self._n, self._n + 1
        messages, other = _messages(row), row.rejected if isinstance(row, Preference) else ()
        self.roles.update(message.role for message in messages)
        called = [call for message in (*messages, *other) for call in message.calls]
        self.calls.update(call.name for call in called)
        self.turns = max(self.turns, sum(message.role == "assistant" for message in messages))
        text = "".join([*(message.content for message in (*messages, *other)), *map(text_of_call, called)])
        unknown = {c for c in set(text) if not self.tokenizer.knows(c)}
        missing = [c for c in text if c in unknown]
        if missing and not self.unknown:
            self.unknown_first = f"{missing[0]!r} in {row.place}"
        self.unknown.update(missing)
        self.with_markup += any(token.strip() in text for token in (MARKUP[1], MARKUP[4]))
        last = messages[-1]
        if last.role == "assistant":
            self.replies[last.content] += not last.calls
        else:
            self.unanswered += 1
        try:
            sides = rendered(row, self.kind, self.tokenizer)
        except UnknownText:
            return
        self._measure(sides, bool(called), number)

    def _measure(self, sides: list[tuple[list[int], list[bool]]], calls: bool, number: int) -> None:
        most = most_tokens(self.kind, self.block_size)
        longest = max(len(ids) for ids, _ in sides)
        self.lengths.append(longest)
        self.reply_lengths.append(tuple(sum(learned) for _, learned in sides))
        if self.kind == "preferences" and sides[0][0][:most] == sides[1][0][:most]:
            self.same_when_cut += 1
        if self.kind == "prompts" or all(any(learned[1:most]) for _, learned in sides):
            self._fit.append((longest <= most, not calls, number))

    @property
    def n_cut(self) -> int:
        most = most_tokens(self.kind, self.block_size)
        return sum(length > most for length in self.lengths)

    def chosen(self, n: int) -> list[int]:
        """`n` rows to paint: among them one that is cut and one with calls, if there are, and the first ones."""
        special = (next((each for each in self._fit if not each[i]), None) for i in (0, 1))
        rows = dict.fromkeys([each[2] for each in special if each] + [row for *_, row in self._fit[: n + 2]])
        return sorted(islice(rows, n))


def _report(dataset: Dataset, counted: _Counted, fields: tuple[str, ...], rows: int) -> ExamplesReport:
    kind = dataset.kind
    batch_size = training_defaults(METHODS[kind], 1, False)["batch_size"]
    if kind == "prompts":
        batch_size //= GrpoSettings().num_generations
    lengths, most = np.array(counted.lengths), dataset.train.block_size
    tokens = sum(dataset.token_counts)
    learned = int(dataset.train.learned.sum()) + int(dataset.validation.learned.sum())
    return ExamplesReport(
        name=dataset.name, kind=kind, fields=fields, rows=rows, training=dataset.n_train,
        validation=dataset.n_documents - dataset.n_train, left_out=rows - dataset.n_documents, context=most,
        tokens=tokens, learned=learned / tokens,
        lengths=Lengths(int(np.median(lengths)), int(lengths.max()), counted.n_cut),
        pairs=_pairs(counted) if kind == "preferences" else None,
        roles=dict(counted.roles.most_common()), turns=counted.turns, calls=dict(counted.calls.most_common()),
        unknown=dict(counted.unknown.most_common()), unknown_first=counted.unknown_first,
        repeats=dataset.repeats, shared_replies=dataset.shared_replies, batch_size=batch_size,
        steps_per_epoch=-(-dataset.n_train // batch_size), notes=tuple(dataset.notes),
    )  # fmt: skip


def _pairs(counted: _Counted) -> Pairs:
    chosen, rejected = np.array(counted.reply_lengths).T
    longer = (chosen > rejected).mean() + (chosen == rejected).mean() / 2
    return Pairs(int(np.median(chosen)), int(np.median(rejected)), float(longer), counted.same_when_cut)


def _findings(report: ExamplesReport, counted: _Counted) -> Iterator[Finding]:
    """Warnings, then what the reader and the split say."""
    nouns = NOUNS[report.kind] + "s"
    if report.kind != "prompts" and report.lengths.cut:
        share = report.lengths.cut / len(counted.lengths)
        yield Finding(
            True, f"{_percent(share)} of the {nouns} are cut at {report.context:,} tokens, the model's context: their "
            "end of turn is never learned. Use shorter ones, or a model with a longer context.",
        )  # fmt: skip
    if report.kind != "prompts" and report.learned < _LITTLE:
        yield Finding(
            True, f"Only {_percent(report.learned)} of the tokens are learned: most of the time goes into reading."
        )
    if report.unknown:
        n = sum(report.unknown.values())
        which = ", ".join(map(repr, list(report.unknown)[:8]))
        yield Finding(
            True, f"The model has no token for {n:,} of the characters ({which}; first: {report.unknown_first}). The "
            f"{nouns} that have them are left out.",
        )  # fmt: skip
    if counted.unanswered and report.kind == "conversations":
        yield Finding(
            True, f"{counted.unanswered:,} {nouns} do not end with the assistant: their last turn is only read."
        )
    if counted.with_markup:
        yield Finding(
            True, f"{counted.with_markup:,} {nouns} contain {MARKUP[4]} or another mark of turns as text. It is read "
            "as letters, not as the end of a turn.",
        )  # fmt: skip
    yield from _of_replies(report, counted)
    for note in report.notes:
        yield Finding(False, note)


def _of_replies(report: ExamplesReport, counted: _Counted) -> Iterable[Finding]:
    found = []
    if report.kind != "prompts" and report.rows >= _FEW:
        reply, n = max(counted.replies.items(), key=lambda each: each[1], default=("", 0))
        if n > _SAME * report.rows:
            quote = " ".join(printable(reply[:60]).split())
            found.append(Finding(True, f"{_percent(n / report.rows)} of the replies are the same: “{quote}”."))
    if (pairs := report.pairs) and report.rows >= _FEW and not 1 - _BIAS < pairs.longer_wins < _BIAS:
        which, share = ("longer", pairs.longer_wins) if pairs.longer_wins > 0.5 else ("shorter", 1 - pairs.longer_wins)
        found.append(
            Finding(
                True, f"Preferring the {which} reply is right for {_percent(share)} of the pairs (ties count half). A "
                "model may learn the length instead of what makes a reply better. Balance the lengths.",
            )
        )  # fmt: skip
    if pairs and pairs.same_when_cut:
        found.append(Finding(True, f"{pairs.same_when_cut:,} pairs have the same two replies once they are cut."))
    return found


def _percent(share: float) -> str:
    return "less than 1%" if 0 < share < 0.01 else f"{share:.0%}"
