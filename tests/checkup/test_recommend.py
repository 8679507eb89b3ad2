"""Advice follows from the text: which tokenizer, and when memorising begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import groundling
from groundling.checkup import inspect as advice
from groundling.checkup.inspect import choose_tokenizer, memorising_begins
from groundling.checkup.report import Report, examine
from groundling.config import CorpusSettings
from groundling.data.sources import find_source
from groundling.planning import planner as budget


@pytest.fixture
def report(text_file: Path) -> Report:
    return examine(find_source(text_file), CorpusSettings(), lambda _: None, lambda *_: None)[0]


def of_size(report: Report, characters: int, alphabet: int) -> Report:
    return dataclasses.replace(report, text=dataclasses.replace(report.text, characters=characters, alphabet=alphabet))


def test_short_texts_are_best_read_by_the_character(report: Report) -> None:
    kind, vocab_size, why = choose_tokenizer(of_size(report, 1_115_394, 65))
    assert (kind, vocab_size) == ("char", report.tokens.vocab_size)
    assert "17,160 times" in why


def test_long_texts_and_large_alphabets_are_best_read_in_pieces(report: Report) -> None:
    assert choose_tokenizer(of_size(report, 1_000_000, 65))[0] == "char"
    assert choose_tokenizer(of_size(report, 9_000_000, 4000))[0] == "char"  # each of them often enough
    assert choose_tokenizer(of_size(report, 1_000_000, 4000))[:2] == ("bpe", 512)
    assert choose_tokenizer(of_size(report, 100_000_000, 200))[:2] == ("bpe", 16_384)
    assert choose_tokenizer(of_size(report, 10**10, 200))[:2] == ("bpe", 32_768)


def test_memorising_begins_sooner_in_larger_models_and_later_with_dropout() -> None:
    # What docs/LOG.md measured: parameters a token, dropout, passes; the rule claims a factor of two.
    for ratio, dropout, measured in ((7.87, 0.0, 9.8), (7.87, 0.1, 14.8), (7.87, 0.2, 21.6), (0.99, 0.0, 15.7)):
        assert measured / 2 < memorising_begins(round(100_000 * ratio), 100_000, dropout) < measured * 2
    assert memorising_begins(1000, 1000, 0.0) > memorising_begins(2000, 1000, 0.0)
    assert memorising_begins(1000, 1000, 0.2) > memorising_begins(1000, 1000, 0.1)


def test_who_has_time_for_two_generations_is_told_what_they_are_for(text_file: Path) -> None:
    report = groundling.inspect(text_file, minutes=60, on_event=lambda event: None)
    assert report.recommendation is not None
    assert "in 2 generations: a model with a teacher memorizes" in report.recommendation.reasons[-1]
    hasty = groundling.inspect(text_file, minutes=60, generations=1, on_event=lambda event: None)
    assert hasty.recommendation is not None
    assert hasty.recommendation.reasons[-1].endswith("more text would help more than more time.")


def test_one_default_of_minutes() -> None:
    assert advice.DEFAULT_MINUTES == budget.DEFAULT_MINUTES
