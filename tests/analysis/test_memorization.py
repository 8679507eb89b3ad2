"""Copies are found where they stand, whole, and nowhere else: held against `str.find`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import groundling
from groundling.analysis import memorization as originality
from groundling.analysis.memorization import COPIED, Originality, Span, TrainingText, parts
from groundling.config import CorpusSettings
from groundling.data.corpus import Corpus
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.training.events import Sample


def by_find(documents: list[str], sample: str, copied: int) -> tuple[int, float, list[tuple[int, int]]]:
    """Longest, share and copied spans, by trying every span of the sample in every document."""
    n = len(sample)
    stands = [(i, j) for i in range(n) for j in range(i + 1, n + 1) if any(d.find(sample[i:j]) >= 0 for d in documents)]
    whole = [(i, j) for i, j in stands if not any(a <= i and j <= b and (a, b) != (i, j) for a, b in stands)]
    spans = [(i, j) for i, j in whole if j - i >= copied]
    covered = {k for i, j in spans for k in range(i, j)}
    return max((j - i for i, j in stands), default=0), len(covered) / n if n else 0.0, spans


def check_places(documents: list[str], sample: str, found: Originality) -> None:
    for span in (*found.spans, *([found.where] if found.where else [])):
        assert span.text == sample[span.start : span.stop]
        number = next(i for i, document in enumerate(documents) if span.text in document)
        assert span.document == (f"document {number + 1}" if len(documents) > 1 else None)
        assert span.position == documents[number].find(span.text)
        assert span.line == documents[number][: span.position].count("\n") + 1
        starts = ((d, i) for d in documents for i in range(len(d)))
        assert span.times == sum(d.startswith(span.text, i) for d, i in starts)


SYMBOLS = "aab\né☃😀"  # of one to four bytes; é and 😀 share a byte with others of their length
documents_and_sample = st.tuples(
    st.lists(st.text("ab", max_size=30) | st.text(SYMBOLS, max_size=30), min_size=1, max_size=3),
    st.text("ab", max_size=16) | st.text(SYMBOLS + "z", max_size=16),
)


@given(documents_and_sample, st.integers(1, 8))
@settings(max_examples=300, deadline=None)
def test_it_finds_what_find_finds(case: tuple[list[str], str], copied: int) -> None:
    documents, sample = case
    before, originality.COPIED = originality.COPIED, copied
    try:
        found = TrainingText(documents).report(sample)
    finally:
        originality.COPIED = before
    longest, share, spans = by_find(documents, sample, copied)
    assert found.longest == longest
    assert found.share == pytest.approx(share)
    assert [(span.start, span.stop) for span in found.spans] == spans
    assert found.characters == len(sample)
    check_places(documents, sample, found)


def test_a_planted_copy_is_found_where_it_stands(prose: str) -> None:
    copy = prose[12_345:12_445]
    before, after = "☃" * 70, "☃" * 30
    found = TrainingText([prose]).report(before + copy + after)
    assert found.longest == 100
    assert found.share == 0.5
    (span,) = found.spans
    assert span == found.where
    assert (span.start, span.stop, span.text) == (70, 170, copy)
    assert (span.position, span.document) == (prose.find(copy), None)
    assert span.line == prose[: span.position].count("\n") + 1


def test_a_fresh_text_copies_nothing(prose: str) -> None:
    words, chosen = sorted(word for word in set(prose.split()) if len(word) < 12), random.Random(0)
    fresh = " ".join(chosen.choice(words) for _ in range(100))
    found = TrainingText([prose]).report(fresh)
    assert (found.share, found.spans) == (0.0, ())
    assert 0 < found.longest < COPIED
    assert found.where is not None and prose.find(found.where.text) == found.where.position


@pytest.mark.parametrize(("length", "share"), [(COPIED - 1, 0.0), (COPIED, 1.0)])
def test_a_span_counts_from_thirty_characters_on(length: int, share: float, prose: str) -> None:
    assert TrainingText([prose]).report(prose[:length]).share == share


def test_spans_at_the_very_start_and_end(prose: str) -> None:
    sample = prose[-40:] + "☃" + prose[:50]
    found = TrainingText([prose]).report(sample)
    assert [(span.start, span.stop, span.position) for span in found.spans] == [
        (0, 40, len(prose) - 40),
        (41, 91, 0),
    ]
    assert TrainingText([prose]).report(prose).where == Span(0, len(prose), prose, None, 0, 1, 1)


def test_where_spans_overlap_each_character_counts_once() -> None:
    one, shared, other = "a" * 25, "0123456789", "b" * 25
    text = TrainingText([one + shared + "!" + shared + other])
    sample = "?" + one + shared + other + "?"
    found = text.report(sample)
    assert [(span.start, span.stop) for span in found.spans] == [(1, 36), (26, 61)]
    assert found.share == 60 / 62
    assert [(piece, span and span.start) for piece, span in parts(sample, found.spans)] == [
        ("?", None), (one, 1), (shared + other, 26), ("?", None),
    ]  # fmt: skip


@pytest.mark.parametrize("unit", ["é", "☃", "😀", "e\u0301"])
def test_places_are_counted_in_characters(unit: str) -> None:
    document = unit * 50 + "\n" + "x" + unit * 40 + "y"
    found = TrainingText([document]).report("x" + unit * 40 + "y")
    assert found.where is not None
    assert (found.longest, found.share) == (2 + 40 * len(unit), 1.0)
    assert (found.where.position, found.where.line) == (50 * len(unit) + 1, 2)


def test_what_shares_only_bytes_is_no_copy() -> None:
    found = TrainingText(["é" * 40]).report("è" * 40)  # C3 A9 and C3 A8
    assert (found.longest, found.share, found.where) == (0, 0.0, None)
    assert TrainingText(["abc"]).report("\ud800").longest == 0


def test_no_span_crosses_from_one_document_into_the_next(prose: str) -> None:
    text = TrainingText([prose[:100], prose[100:200]], ["one.txt", "two.txt"])
    found = text.report(prose[60:160])
    assert [(span.start, span.stop, span.document, span.position) for span in found.spans] == [
        (0, 40, "one.txt", 60),
        (40, 100, "two.txt", 0),
    ]


def test_nothing_to_compare() -> None:
    assert TrainingText(["abc"]).report("") == Originality(0, 0, 0.0, None, ())
    assert TrainingText([""]).report("abc").longest == 0


def test_a_text_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    monkeypatch.setattr(originality, "MAX_BYTES", 1000)
    for make in (lambda: TrainingText(["a" * 1001]), lambda: TrainingText.of(Corpus.open(str(text_file)))):
        with pytest.raises(ValueError, match="more than 100 MB: too much to search for copies"):
            make()
    assert TrainingText(["a" * 1000]).report("a" * 1000).share == 1.0


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_corpus_is_read_back_as_it_was(
    piece: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a token is, and wherever the pieces in which it is read are cut."""
    from groundling.data.corpus import prepare
    from groundling.data.sources import find_source

    monkeypatch.setattr(originality, "_PIECE", piece)
    (tmp_path / "docs").mkdir()
    texts = ["aé☃😀" * 3, "", "b", "é\n" * 9, "😀", "end " * 8]
    for i, text in enumerate(texts):
        (tmp_path / "docs" / f"{i}.txt").write_text(text, encoding="utf-8", newline="")
    texts.remove("")  # an empty file is left out
    tokenizer = ByteTokenizer() if kind == "byte" else CharTokenizer.fit(texts, end_of_text=True)
    monkeypatch.setattr(Tokenizer, "load", staticmethod(lambda path: tokenizer))
    source = find_source(tmp_path / "docs")
    corpus = prepare(source, CorpusSettings(val_fraction=0.3), tokenizer=tokenizer)
    done: list[tuple[str, int, int]] = []
    text = TrainingText.of(corpus, progress=lambda *what: done.append(what))
    training = corpus.tokenizer.decode(corpus.train.read(0, len(corpus.train)))
    assert text._text.replace(b"\xff", b"").decode() == training
    assert text._text.split(b"\xff")[:4] == [t.encode() for t in texts[:4]]
    size = len(training.encode())
    assert done[-2:] == [("reading back", size, size), ("indexing", 0, size)]


def test_a_run_knows_its_training_text_alone(text_file: Path, prose: str, tiny: dict[str, Any]) -> None:
    short = tiny | {"steps": 4, "eval_every": 2, "warmup_steps": 1, "sample_tokens": 40}
    samples: list[Sample] = []
    run = groundling.train(text_file, on_event=lambda e: samples.append(e) if isinstance(e, Sample) else None, **short)
    text = run.training_text()
    border = int(0.9 * len(prose))  # behind it lies the validation part
    assert text.report(prose[border - 60 : border]).share == 1.0
    assert text.report(prose[border - 60 : border + 60]).spans[0].stop == 60
    for sample in samples:
        found = text.report(sample.text)
        assert (sample.copied_share, sample.longest_copy) == (found.share, found.longest)


def test_a_long_text_is_not_indexed_while_training(
    text_file: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from groundling.tasks import pretraining

    monkeypatch.setattr(pretraining, "_MAX_INDEXED", 1000)
    seen: list[Sample] = []
    short = tiny | {"steps": 2, "warmup_steps": 1}
    groundling.train(text_file, on_event=lambda e: seen.append(e) if isinstance(e, Sample) else None, **short)
    assert [(sample.copied_share, sample.longest_copy) for sample in seen] == [(None, None)] * len(seen)
    assert seen


def test_documents_are_named(tmp_path: Path, prose: str, tiny: dict[str, Any]) -> None:
    (tmp_path / "books").mkdir()
    for i in range(10):
        (tmp_path / "books" / f"{i}.txt").write_text(prose[3000 * i : 3000 * (i + 1)], encoding="utf-8", newline="")
    short = tiny | {"steps": 1, "warmup_steps": 0, "sample_tokens": 0}
    run = groundling.train("books", on_event=lambda event: None, **short)
    where = run.training_text().report(prose[3100:3200]).where
    assert where is not None and where.document is not None
    assert (Path(where.document).name, where.position) == ("1.txt", 100)
