"""Tokens as text: whole characters, stop texts, ends."""

from __future__ import annotations

import pytest
import torch

from groundling.config import ModelSettings, Sampling
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.inference.engine import generate
from groundling.inference.stream import PromptTruncated, StreamDecoder, start_ids, stream
from groundling.model.gpt import GPT

LETTERS = "\n abcdefghijklmnopqrstuvwxyz"
TOKENIZER = CharTokenizer(LETTERS)
SAMPLING = Sampling(temperature=1.0, top_k=0, seed=1)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelSettings(block_size=16, n_layer=2, n_head=2, n_embd=32), TOKENIZER.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def text_of(model: GPT, prompt: str, n: int, stop: str | list[str] = "") -> str:
    return "".join(stream(model, TOKENIZER, TOKENIZER.encode(prompt), n, SAMPLING, stop))


def test_streamed_pieces_add_up_to_the_decoded_tokens(model: GPT) -> None:
    tokens = list(generate(model, TOKENIZER.encode("hello"), 50, SAMPLING))
    assert text_of(model, "hello", 50) == TOKENIZER.decode(tokens)
    assert text_of(model, "hello", 0) == ""


@pytest.mark.parametrize("length", [1, 2, 5])
def test_it_ends_where_a_stop_text_appears(model: GPT, length: int) -> None:
    whole = text_of(model, "hello", 60)
    for start in range(0, 50, 7):
        stop = whole[start : start + length]
        assert text_of(model, "hello", 60, stop) == whole[: whole.index(stop)]
        assert text_of(model, "hello", 60, ["ZZZ", whole[55:], stop]) == whole[: whole.index(stop)]


def test_what_only_begins_like_a_stop_text_is_shown(model: GPT) -> None:
    whole = text_of(model, "hello", 30)
    assert text_of(model, "hello", 30, stop=[whole[-2:] + "ZZZ", "ZZ"]) == whole


def test_it_ends_at_the_end_of_a_document(model: GPT) -> None:
    marked = CharTokenizer(LETTERS[:-1], end_of_text=True)  # its last id, which was "z", now ends a document
    tokens = list(generate(model, [5], 200, SAMPLING))
    assert marked.end_of_text_id in tokens
    written = "".join(stream(model, marked, [5], 200, SAMPLING))
    assert written == marked.decode(tokens[: tokens.index(marked.end_of_text_id)])


def test_a_prompt_longer_than_the_context_says_so_and_is_read_from_where_its_window_begins(model: GPT) -> None:
    prompt = "the quick brown fox jumps over the lazy dog"
    with pytest.warns(PromptTruncated, match="43 tokens, but the context is 16: only the newest 11 are used"):
        long = text_of(model, prompt, 20)
    assert long == text_of(model, prompt[-11:], 20)


def shown(tokenizer: Tokenizer, tokens: list[int], *stop: str) -> list[str]:
    """The pieces in which these tokens are shown."""
    writer = StreamDecoder(tokenizer, stop)
    return [piece for piece in [*map(writer.push, tokens), writer.finish()] if piece]


CURIOUS = "Größe ☃, 𝔘 👩‍🚀 שלום"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BpeTokenizer.fit(["☃☃ 👩‍🚀 👩‍🚀"], 270)], ids=["byte", "bpe"])
def test_a_character_is_shown_when_its_last_token_has_come(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(CURIOUS)
    pieces = shown(tokenizer, ids)
    assert "".join(pieces) == CURIOUS and "\ufffd" not in "".join(pieces)
    assert len(ids) > len(CURIOUS) >= len(pieces)  # it comes as early as it can
    for n in range(len(ids)):
        so_far = "".join(shown(tokenizer, ids[:n]))
        assert so_far == tokenizer.decode_bytes(ids[:n]).decode("utf-8", "ignore")  # whole characters, and all of them


@pytest.mark.parametrize("stop", ["☃", "ße ☃", "🚀 ש", "שלום"])
def test_a_stop_text_may_be_spread_over_tokens(stop: str) -> None:
    ids = ByteTokenizer().encode(CURIOUS)
    assert "".join(shown(ByteTokenizer(), ids, stop)) == CURIOUS[: CURIOUS.index(stop)]
    assert "".join(shown(ByteTokenizer(), ids, "", "never", stop)) == CURIOUS[: CURIOUS.index(stop)]


def test_the_first_of_several_stop_texts_counts() -> None:
    text = ByteTokenizer().encode("one two three")
    assert "".join(shown(ByteTokenizer(), text, "three", "two")) == "one "
    assert "".join(shown(ByteTokenizer(), text, "e t", "ne")) == "o"


def test_bytes_that_are_no_character_are_marked() -> None:
    assert "".join(shown(ByteTokenizer(), [0xE2, 0x98, 0x41, 0xFF, 0x42])) == "\ufffdA\ufffdB"


def test_where_to_begin_without_a_prompt() -> None:
    assert start_ids(CharTokenizer("ab", end_of_text=True)) == [2]
    assert start_ids(ByteTokenizer()) == [256]
    assert start_ids(ByteTokenizer(), n_documents=1) == [10]  # it has never seen how a document ends
    assert start_ids(CharTokenizer("\nab")) == [0]
    assert start_ids(CharTokenizer("ab")) == [0]
