"""Loss and its relatives: right, complete, and the same every time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from groundling.config import CorpusSettings, MachineSettings, ModelSettings
from groundling.corpus.bpe import BpeTokenizer
from groundling.corpus.tokenizer import BYTE_LETTERS
from groundling.corpus.tokens import Corpus, Tokens
from groundling.evaluation.score import Interrupted, score, windows_of
from groundling.machine import choose
from groundling.model.gpt import GPT

MACHINE = choose(MachineSettings(device="cpu", dtype="float32"))


@pytest.fixture
def corpus(text_file: Path) -> Corpus:
    return Corpus.open(str(text_file))


def model_for(corpus: Corpus, block_size: int = 32) -> GPT:
    torch.manual_seed(0)
    return GPT(ModelSettings(block_size=block_size, n_layer=1, n_head=2, n_embd=16), corpus.tokenizer.vocab_size)


def part(tokens: Tokens, n: int) -> Tokens:
    return Tokens(tokens.path, tokens.dtype, tokens.start, tokens.start + n)


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary(corpus: Corpus) -> None:
    model = model_for(corpus)
    torch.nn.init.zeros_(model.wte.weight)  # tied: all logits are 0, all tokens equally likely
    result = score(model, corpus.validation, corpus.tokenizer, MACHINE)
    V = corpus.tokenizer.vocab_size
    assert result.loss == pytest.approx(math.log(V), rel=1e-6)
    assert result.perplexity == pytest.approx(V, rel=1e-5)
    assert result.bits_per_character == pytest.approx(math.log2(V), rel=1e-6)


@pytest.mark.parametrize("n", [2, 31, 32, 33, 34, 64, 65, 66, 1000])
def test_every_token_but_the_first_is_predicted_once(corpus: Corpus, n: int) -> None:
    """Against the protocol written as plainly as can be: one window after another."""
    model, tokens = model_for(corpus), part(corpus.validation, n)
    ids = torch.from_numpy(tokens.read(0, n))
    nats = 0.0
    with torch.no_grad():
        for start in range(0, n - 1, 32):
            window = ids[start : start + 33]
            nats += float(F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum"))
    result = score(model, tokens, corpus.tokenizer, MACHINE)
    assert result.tokens == n - 1
    assert result.loss == pytest.approx(nats / (n - 1), rel=1e-5)


def test_two_evaluations_agree_to_the_last_digit(corpus: Corpus) -> None:
    model = model_for(corpus)
    first, second = (score(model, corpus.validation, corpus.tokenizer, MACHINE) for _ in range(2))
    assert first == second


def test_bytes_and_characters_differ_where_the_text_is_not_ascii(tmp_path: Path) -> None:
    path = tmp_path / "greek.txt"
    path.write_text("αβγδ " * 400, encoding="utf-8")
    corpus = Corpus.open(str(path))
    result = score(model_for(corpus), corpus.validation, corpus.tokenizer, MACHINE)
    text = corpus.tokenizer.decode(corpus.validation.read(1, len(corpus.validation)))
    assert (result.characters, result.bytes) == (len(text), len(text.encode()))
    assert result.bits_per_character * result.characters == pytest.approx(result.bits_per_byte * result.bytes)
    assert result.bits_per_character == pytest.approx(result.loss / math.log(2))


def test_marks_between_documents_cost_bits_but_are_no_characters(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / f"{i:02}.txt").write_text("a short document. " * 3, encoding="utf-8")
    corpus = Corpus.open(str(tmp_path / "docs"), CorpusSettings(val_fraction=0.2))
    result = score(model_for(corpus), corpus.validation, corpus.tokenizer, MACHINE)
    assert result.tokens == result.characters + 8
    assert result.bits_per_character == pytest.approx(result.loss * result.tokens / math.log(2) / result.characters)


def test_bits_per_byte_by_hand_where_tokens_part_characters(tmp_path: Path) -> None:
    """A model that finds all tokens equally likely needs log2 V bits for each; the bytes are those of the file."""
    path = tmp_path / "greek.txt"
    path.write_text("αβγδ ☃ und 𝔘 " * 300, encoding="utf-8")
    for kind in ({"tokenizer": "byte"}, {"tokenizer": "bpe", "vocab_size": 262}):
        corpus = Corpus.open(str(path), CorpusSettings(**kind))  # type: ignore[arg-type]
        V, whole = corpus.tokenizer.vocab_size, part(corpus.train, len(corpus.train) + len(corpus.validation))
        model = model_for(corpus)
        torch.nn.init.zeros_(model.wte.weight)
        result = score(model, whole, corpus.tokenizer, MACHINE)
        first = corpus.tokenizer.pieces[int(whole.read(0, 1)[0])]  # it is not predicted
        assert result.bytes == path.stat().st_size - len(first)
        assert result.characters == len(path.read_text("utf-8")) - 1
        assert result.bits_per_byte == pytest.approx(result.tokens * math.log2(V) / result.bytes, rel=1e-6)
        assert result.tokens == len(whole) - 1


def test_two_tokenizers_that_segment_alike_give_the_same_bits_per_byte(text_file: Path, prose: str) -> None:
    ascii_only = prose.encode("ascii", "ignore")
    text_file.write_bytes(ascii_only)
    characters = Corpus.open(str(text_file))
    letters = [BYTE_LETTERS[byte] for byte in sorted(set(ascii_only))]
    BpeTokenizer(letters, []).save("alike.json")
    alike = Corpus.open(str(text_file), CorpusSettings(tokenizer="alike.json"))
    model = model_for(characters)
    one, other = (score(model, corpus.validation, corpus.tokenizer, MACHINE) for corpus in (characters, alike))
    assert alike.tokenizer != characters.tokenizer and one == other


def test_a_cap_takes_windows_spread_evenly_over_the_text() -> None:
    starts = windows_of(n_tokens=100_001, block_size=100, max_tokens=1000)
    assert len(starts) == 10
    assert set(np.diff(starts)) == {10_000}
    assert len(windows_of(100_001, 100, 0)) == 1000
    assert len(windows_of(100_001, 100, 10**9)) == 1000


def test_nothing_to_predict_is_said(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        score(model_for(corpus), part(corpus.validation, 1), corpus.tokenizer, MACHINE)


def test_a_request_to_stop_is_heeded_between_batches(corpus: Corpus) -> None:
    with pytest.raises(Interrupted):
        score(model_for(corpus), corpus.validation, corpus.tokenizer, MACHINE, stopped=lambda: True)
