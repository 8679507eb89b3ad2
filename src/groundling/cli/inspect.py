"""The command inspect: check a text before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from groundling.cli.app import Corpus, Json, Out, app, print_json, print_rows
from groundling.cli.flags import with_settings
from groundling.cli.painting import show_painted
from groundling.config import CorpusSettings, Limits, flag, user_path
from groundling.escape import printable

if TYPE_CHECKING:
    from groundling.checkup.report import Recommendation, Report


With = Parameter(name="--with", help="Check conversations, pairs or prompts as this run would read them.")
_READING = ("glob", "format", "val_fraction", "field")


@app.command(sort_key=5)
@with_settings("text")
def inspect(
    *corpus: Corpus,
    minutes: float = 5.0,
    with_: Annotated[str | None, With] = None,
    examples: int | None = None,
    html: Path | None = None,
    out: Out = None,
    json: Json = False,
    **settings: Any,
) -> None:
    """Check a text before training: contents, duplicates, leakage, n-gram baselines, and a recommended model.

    Or check conversations, pairs or prompts, with the run that will be trained on them.

    Args:
        minutes: The training time to recommend a model for.
        examples: With --with: how many examples to show, token by token. Default: 3.
        html: Also write the report to this HTML file.
    """
    from groundling.checkup.inspect import inspect

    if examples is not None:
        Limits(0, 100).check("--examples", examples)
    if out is not None:
        user_path("--out", out)
    if with_ is not None:
        return _inspect_examples(corpus, with_, 3 if examples is None else examples, html, out, json, settings)
    if examples is not None or out is not None:
        raise ValueError("--examples and --out need --with, the run that will be trained on them.")
    report = inspect(corpus, minutes=minutes, html=html, **settings)
    if json:
        return print_json(report.to_dict())
    _show(report)
    if html is not None:
        print(f"\nThe same as an HTML page: {html}")
    return None


def _show(report: Report) -> None:
    from groundling.checkup.findings import findings
    from groundling.checkup.text import said

    text, tokens, milestones = report.text, report.tokens, report.milestones
    scripts = ", ".join(f"{name} {share:.1%}" for name, share in list(text.scripts.items())[:6])
    languages = ", ".join(f"{code} {share:.0%}" for code, share in list(text.languages.items())[:5])
    print_rows([
        ("text", f"{report.name}: {text.characters:,} characters, {text.bytes:,} bytes, {text.lines:,} lines, "
                 f"{report.documents:,} document(s)"),
        ("scripts", scripts),
        ("languages", (languages or "too little text to tell") + " (ISO 639-1 codes, from samples)"),
        ("alphabet", f"{text.alphabet:,} characters"),
        ("rarest", ", ".join(f"{c.shown} {c.count:,}" for c in text.rarest)),
        *[("", f"{c.shown} ({c.name.lower()}): {said(c.places)}")
          for c in text.rarest if c.count <= len(c.places)][:10],
        ("tokens", f"{tokens.training_tokens:,} for training, {tokens.validation_tokens:,} for validation; "
                   f"{tokens.tokenizer} tokenizer, vocabulary of {tokens.vocab_size:,}, "
                   f"{tokens.characters_per_token:.2f} characters per token"),
        ("bigrams", f"{tokens.bigrams_present:,} of {tokens.bigrams_possible:,} possible ones occur"),
    ])  # fmt: skip
    print("\nN-gram baselines on the validation part (loss in nats per token, bits per byte):")
    for model in milestones.models:
        is_best = model.name == milestones.best
        note = "  (best: a model with a lower loss has learned more than n-grams)" if is_best else ""
        print(f"  {model.name:8} {model.loss:7.3f} {model.bits_per_byte:7.3f}{note}")
    if milestones.training_tokens_read < tokens.training_tokens:
        print(f"  (from a sample of {milestones.training_tokens_read:,} tokens)")
    print("\nFindings:")
    for finding in findings(report):
        print(f"  {'!' if finding.look else '-'} {finding.sentence}")
    _show_examples(report)
    if report.recommendation is None:
        print(f"\nToo short to train on: {tokens.training_tokens:,} tokens are fewer than a model's context.")
    else:
        _show_advice(report.recommendation)


def _inspect_examples(
    corpus: Sequence[str], with_: str, examples: int, html: Path | None, out: Path | None, json: bool,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    from groundling import storage
    from groundling.checkup.examples import check_examples
    from groundling.checkup.examples_page import page, rows
    from groundling.cli.copies import indexing
    from groundling.data.tokenizers.chat import with_chat
    from groundling.run.store import load

    for name in settings.keys() - {*_READING}:
        raise ValueError(f"You cannot set {flag(name)} with --with: the run has its own tokenizer.")
    page_file = storage.output_file("--html", html) if html is not None else None
    run = load(with_, out=out)
    text, size = CorpusSettings(**settings), run.config.model.block_size
    report = check_examples(corpus, text, with_chat(run.tokenizer), size, examples, indexing())
    if page_file is not None:
        storage.write_file(page_file, page(report, run.name))
    if json:
        return print_json(report.to_dict())
    print_rows(rows(report))
    print("\nFindings:")
    for finding in report.findings:
        print(f"  {'!' if finding.look else '-'} {printable(finding.sentence)}")
    for example in report.painted:
        show_painted(example)
    if page_file is not None:
        print(f"\nThe same as an HTML page: {html}")
    return None


def _show_examples(report: Report) -> None:
    from groundling.checkup.text import said

    near, leak = report.duplicates.near, report.leakage
    for repeats in report.duplicates.exact:
        for repeated in repeats.worst[:2]:
            print(f"    {repeats.unit} ×{repeated.count}: {_line(repeated.quote)} ({said(repeated.places)})")
    for pair in near.worst[:2]:
        print(f"    {near.unit}, {pair.resemblance:.0%} alike: {_line(pair.quote)} ({said((pair.first, pair.second))})")
    for passage in leak.longest[:3]:
        print(
            f"    {passage.characters:,} characters of the validation part ({passage.validation}) as in "
            f"{passage.training}: {_line(passage.quote)}"
        )
    if leak.sampled:
        print("    (long text: only a part was checked for leakage, so this is a lower bound)")
    if report.duplicates.sampled:
        print("    (long text: only a part was checked for duplicates)")


def _show_advice(advice: Recommendation) -> None:
    model = advice.model
    low, likely, high = advice.expected_loss
    print(f"\nRecommended for {advice.minutes:g} minutes on this machine:")
    print(
        f"  tokenizer {advice.tokenizer} ({advice.vocab_size:,}); {advice.parameters / 1e6:.2f}M parameters "
        f"({model['n_layer']} layers × {model['n_embd']}), dropout {model['dropout']:g}; about {advice.steps:,} steps, "
        f"{advice.epochs:,.1f} epochs; expected loss {likely:.2f} ({low:.2f} to {high:.2f})"
    )
    print(f"  memorization begins after about {advice.memorises_after_steps:,} steps at this size (rule of thumb)")
    for reason in advice.reasons:
        print(f"  - {reason}")
    print(f"\n  {advice.command}")


def _line(quote: str) -> str:
    """The quote on one line, without control characters."""
    return "“" + "".join(c if c.isprintable() else "·" for c in " ".join(quote.split())) + "”"
