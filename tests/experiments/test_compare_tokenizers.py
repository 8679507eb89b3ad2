"""Tokenizers side by side: figures that can be counted by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

import groundling
from groundling.config import CorpusSettings
from groundling.data.corpus import Corpus


def test_figures_are_those_of_the_text(text_file: Path, prose: str) -> None:
    prose = prose.encode("ascii", "ignore").decode()
    text_file.write_text(prose, encoding="utf-8", newline="")
    found = groundling.compare_tokenizers(text_file, vocab_sizes=(100_000, 300, 50_000))
    rows = found["tokenizers"]
    assert (found["corpus"], found["characters"]) == ("prose", len(prose))
    assert [row["tokenizer"] for row in rows] == ["char", "byte", "bpe", "bpe"]  # no text gives 50,000 or 100,000
    assert [row["vocabulary"] for row in rows[:3]] == [len(set(prose)), 257, 300]
    assert [row["tokens"] for row in rows[:2]] == [len(prose), len(prose) + 1]
    pairs = len(set(pairwise(prose)))
    assert [row["bigrams_present"] for row in rows[:2]] == [pairs, pairs]
    assert [row["bigrams_possible"] for row in rows[:3]] == [len(set(prose)) ** 2, 256**2, 299**2]
    ids = Corpus.open(str(text_file), CorpusSettings("bpe", 300)).tokenizer.encode(prose)
    assert rows[2]["bigrams_present"] == len(set(pairwise(ids)))
    assert rows[2]["characters_per_token"] == len(prose) / len(ids)


def test_pairs_across_documents_do_not_count(tmp_path: Path) -> None:
    for i, text in enumerate(("abab", "ca", "b")):
        (tmp_path / f"{i}.txt").write_text(text)
    rows = groundling.compare_tokenizers(tmp_path, glob="*.txt", vocab_sizes=())["tokenizers"]
    assert [row["bigrams_present"] for row in rows] == [3, 3]
    assert [row["characters_per_token"] for row in rows] == [1, 1]
    assert [row["bigrams_possible"] for row in rows] == [9, 256**2]


def test_the_workshops_figures(text_file: Path) -> None:
    """24,960 and 19.3 million parameters; the workshop's model has 10,770,816 with 65 characters."""
    few, many = groundling.compare_tokenizers(text_file, vocab_sizes=())["workshop"]
    assert (few["vocabulary"], few["embedding_parameters"]) == (65, 24_960)
    assert (many["vocabulary"], many["embedding_parameters"]) == (50_257, 19_298_688)
    assert few["embedding_share"] == pytest.approx(24_960 / 10_770_816, rel=1e-2)
    assert 0.64 < many["embedding_share"] < 0.65
    assert groundling.compare_tokenizers(text_file, vocab_sizes=(), n_embd=100)["workshop"][0][
        "embedding_parameters"
    ] == 6_500  # fmt: skip


def test_what_cannot_be_is_said(text_file: Path) -> None:
    with pytest.raises(ValueError, match="--vocab-sizes must be at least 257"):
        groundling.compare_tokenizers(text_file, vocab_sizes=(100,))
    with pytest.raises(ValueError, match="--n-embd must be at least 1"):
        groundling.compare_tokenizers(text_file, n_embd=0)


@pytest.mark.slow
def test_equal_minutes_and_nothing_left(text_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    found = groundling.compare_tokenizers(text_file, vocab_sizes=(), minutes=0.2, on_event=lambda event: None)
    for row in found["tokenizers"]:
        assert 1 < row["bits_per_byte"] < 8 and row["steps"] > 0 and row["model_parameters"] > 0
    assert not list((tmp_path / "temporary").iterdir()) and not Path("runs").exists()
