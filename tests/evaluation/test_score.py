"""Loss and its relatives: right, complete, and the same every time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from groundling.config import CorpusSettings, MachineSettings, ModelSettings
from groundling.data.corpus import Corpus
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.data.tokenizers.byte_level import BYTE_LETTERS
from groundling.data.tokens import Tokens
from groundling.evaluation.score import Interrupted, score, windows_at_once, windows_of
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


@pytest.mark.parametrize("n", [2, 16, 17, 32, 33, 34, 48, 49, 50, 65, 200])
def test_sliding_predicts_every_token_once_with_half_a_context_before_it(corpus: Corpus, n: int) -> None:
    """Against the protocol written as plainly as can be: token after token, from the context that it has there."""
    model, tokens = model_for(corpus), part(corpus.validation, n)
    ids = torch.from_numpy(tokens.read(0, n))
    nats = 0.0
    with torch.no_grad():
        for i in range(1, n):
            begin = 0 if i <= 32 else (i - 32 + 15) // 16 * 16  # the first window that reaches it
            assert i <= 32 or 16 <= i - begin - 1 < 32
            nats += float(F.cross_entropy(model(ids[None, begin:i])[0, -1], ids[i]))
    result = score(model, tokens, corpus.tokenizer, MACHINE, sliding=True)
    assert result.tokens == n - 1
    assert result.protocol == "sliding, stride 16"
    assert result.loss == pytest.approx(nats / (n - 1), rel=1e-5)


def test_within_one_window_both_protocols_are_one(corpus: Corpus) -> None:
    model, tokens = model_for(corpus), part(corpus.validation, 33)
    one, other = (score(model, tokens, corpus.tokenizer, MACHINE, sliding=s) for s in (False, True))
    assert (one.protocol, other.protocol) == ("non-overlapping", "sliding, stride 16")
    assert dataclasses.replace(one, protocol=other.protocol) == other


def test_two_evaluations_agree_to_the_last_digit(corpus: Corpus) -> None:
    model = model_for(corpus)
    first, second = (score(model, corpus.validation, corpus.tokenizer, MACHINE) for _ in range(2))
    assert first == second


class Pairs(Tokenizer):
    """Two ASCII characters in one token: half as many tokens as there are characters."""

    kind, vocab_size, end_of_text_id = "pairs", 128 * 128, None
    pieces = tuple(bytes(divmod(i, 128)) for i in range(128 * 128))

    def encode_array(self, text: str, unknown: Any = "error", offset: int = 0) -> Any:
        codes = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32).reshape(-1, 2)
        return codes[:, 0] * 128 + codes[:, 1]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def to_huggingface(self) -> dict[str, Any]:
        raise NotImplementedError


@pytest.mark.parametrize("sliding", [False, True])
def test_bits_per_byte_do_not_depend_on_the_tokenizer(
    sliding: bool, prose: str, tokens_of: Callable[[str, Tokenizer], Tokens]
) -> None:
    """The same model through two tokenizers that cut a text alike, and number what they cut differently."""
    text = "".join(c for c in prose[:3000] if c.isascii())
    letters, every = CharTokenizer.fit([text]), ByteTokenizer()
    torch.manual_seed(0)
    config = ModelSettings(block_size=32, n_layer=1, n_head=2, n_embd=16, tie_head=False)
    small, large = GPT(config, letters.vocab_size), GPT(config, every.vocab_size)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(3)
        large.load_state_dict(small.state_dict() | {
            "wte.weight": torch.zeros(257, 16), "lm_head.weight": torch.zeros(257, 16),
        })  # fmt: skip
        rows = torch.tensor([ord(c) for c in letters.characters])
        large.wte.weight[rows] = small.wte.weight
        assert small.lm_head is not None and large.lm_head is not None
        large.lm_head.weight[rows] = small.lm_head.weight
    unheard = torch.full((257,), -torch.inf)  # of bytes that the small model does not know
    unheard[rows] = 0.0
    large.lm_head.register_forward_hook(lambda module, inputs, logits: logits + unheard)
    one, other = (
        score(model, tokens_of(text, t), t, MACHINE, sliding=sliding) for model, t in ((small, letters), (large, every))
    )
    assert one.bits_per_byte == pytest.approx(other.bits_per_byte, rel=1e-6)
    assert one.bits_per_character == pytest.approx(other.bits_per_character, rel=1e-6)
    assert (one.tokens, one.bytes) == (other.tokens, other.bytes)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(ByteTokenizer, math.log2(257)), (Pairs, 7)])
def test_what_knows_nothing_needs_the_bits_of_a_blind_guess(
    kind: type[Tokenizer], bits: float, sliding: bool, prose: str, tokens_of: Callable[[str, Tokenizer], Tokens]
) -> None:
    """By hand: one of 257 for each byte is a little over 8 bits; one of 128 × 128 for each two bytes is 7 a byte."""
    tokenizer = kind()
    model = GPT(ModelSettings(block_size=32, n_layer=1, n_head=2, n_embd=16), tokenizer.vocab_size)
    torch.nn.init.zeros_(model.wte.weight)
    text = "".join(c for c in prose[:3000] if c.isascii())[:2000]
    tokens = tokens_of(text, tokenizer)
    result = score(model, tokens, tokenizer, MACHINE, sliding=sliding)
    assert result.loss == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
    assert result.bits_per_byte == result.bits_per_character == pytest.approx(bits, rel=1e-6)
    assert result.bytes == 2000 - len(tokenizer.decode(tokens.read(0, 1)))


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


@pytest.mark.parametrize("vocab_size", [65, 50_257, 2_000_000])
def test_large_vocabularies_are_scored_in_small_batches(vocab_size: int) -> None:
    windows = windows_at_once(256, vocab_size)
    assert windows == 64 if vocab_size == 65 else 1 <= windows < 64
    assert windows == 1 or windows * 256 * vocab_size * 4 <= 64 << 20  # bytes of its logits


def test_nothing_to_predict_is_said(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        score(model_for(corpus), part(corpus.validation, 1), corpus.tokenizer, MACHINE)


def test_a_request_to_stop_is_heeded_between_batches(corpus: Corpus) -> None:
    with pytest.raises(Interrupted):
        score(model_for(corpus), corpus.validation, corpus.tokenizer, MACHINE, stopped=lambda: True)
