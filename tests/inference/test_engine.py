"""Generation: as the uncached model would, past the context, streamed, stopped."""

from __future__ import annotations

import pytest
import torch

from groundling.config import ModelSettings
from groundling.corpus.bpe import BpeTokenizer
from groundling.corpus.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.inference.engine import PromptTruncated, beginning, generate, stream
from groundling.inference.sampling import Sampling, pick
from groundling.model.cache import KVCache
from groundling.model.gpt import GPT

LETTERS = "\n abcdefghijklmnopqrstuvwxyz"
TOKENIZER = CharTokenizer(LETTERS)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelSettings(block_size=16, n_layer=2, n_head=2, n_embd=32), TOKENIZER.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # an untrained model is indifferent; this one has opinions
    return model


def uncached(model: GPT, prompt: list[int], n: int, sampling: Sampling) -> list[int]:
    """The same generation with a full forward pass a token, written as plainly as can be."""
    capacity, generator = model.config.block_size, sampling.generator()
    window, out = prompt[-capacity:], []
    model.eval()
    for _ in range(n):
        with torch.no_grad():
            logits = model(torch.tensor([window]))[:, -1]
        out.append(int(pick(logits, sampling, generator)))
        window.append(out[-1])
        if len(window) > capacity:
            window = window[-(capacity // 2) :]
    return out


@pytest.mark.parametrize("length", [1, 5, 16, 40])
@pytest.mark.parametrize(
    "sampling", [Sampling(0.0), Sampling(1.0, 0, 7), Sampling(0.7, 5, 8)], ids=("greedy", "all", "top-k")
)
def test_it_writes_what_the_uncached_model_writes(model: GPT, length: int, sampling: Sampling) -> None:
    prompt = torch.randint(TOKENIZER.vocab_size, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    assert list(generate(model, prompt, 60, sampling)) == uncached(model, list(prompt), 60, sampling)


def test_no_tokens_are_asked_for(model: GPT) -> None:
    assert list(generate(model, [1], 0, Sampling(seed=1))) == []


def test_an_empty_prompt_is_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        list(generate(model, [], 5, Sampling(seed=1)))


def text_of(model: GPT, prompt: str, n: int, stop: str = "", seed: int = 1) -> str:
    return "".join(stream(model, TOKENIZER, TOKENIZER.encode(prompt), n, Sampling(1.0, 0, seed), stop))


def test_streamed_pieces_add_up_to_the_decoded_tokens(model: GPT) -> None:
    tokens = list(generate(model, TOKENIZER.encode("hello"), 50, Sampling(1.0, 0, 1)))
    assert text_of(model, "hello", 50) == TOKENIZER.decode(tokens)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_it_ends_where_the_stop_text_appears(model: GPT, length: int) -> None:
    whole = text_of(model, "hello", 60)
    for start in range(0, 50, 7):
        stop = whole[start : start + length]
        assert text_of(model, "hello", 60, stop) == whole[: whole.index(stop)]


def test_what_only_begins_like_the_stop_text_is_shown(model: GPT) -> None:
    whole = text_of(model, "hello", 30)
    assert text_of(model, "hello", 30, stop=whole[-2:] + "ZZZ") == whole


def test_it_ends_at_the_end_of_a_document(model: GPT) -> None:
    marked = CharTokenizer(LETTERS[:-1], end_of_text=True)  # its last id, which was "z", now ends a document
    tokens = list(generate(model, [5], 200, Sampling(1.0, 0, 3)))
    assert marked.end_of_text_id in tokens
    written = "".join(stream(model, marked, [5], 200, Sampling(1.0, 0, 3)))
    assert written == marked.decode(tokens[: tokens.index(marked.end_of_text_id)])


def test_a_prompt_longer_than_the_context_says_so_and_keeps_its_newest_part(model: GPT) -> None:
    prompt = "the quick brown fox jumps over the lazy dog"
    with pytest.warns(PromptTruncated, match="43 tokens and the context 16"):
        long = text_of(model, prompt, 20)
    assert long == text_of(model, prompt[-16:], 20)


class Told(GPT):
    """A model that writes the given tokens, whatever it reads."""

    def __init__(self, tokens: list[int], vocab_size: int) -> None:
        super().__init__(ModelSettings(block_size=64, n_layer=1, n_head=1, n_embd=8), vocab_size)
        self.tokens, self.vocab_size = iter(tokens), vocab_size

    def forward(self, tokens: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        assert cache is not None
        following = torch.tensor([[next(self.tokens, 0)]])
        return torch.nn.functional.one_hot(following, self.vocab_size).float()


def told(tokenizer: Tokenizer, tokens: list[int], stop: str = "") -> list[str]:
    """The pieces in which these tokens are shown."""
    model = Told(tokens, tokenizer.vocab_size)
    return list(stream(model, tokenizer, [0], len(tokens), Sampling(0.0), stop))


CURIOUS = "Größe ☃, 𝔘 👩‍🚀 שלום"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BpeTokenizer.fit(["☃☃ 👩‍🚀 👩‍🚀"], 270)], ids=["byte", "bpe"])
def test_a_character_is_shown_when_its_last_token_has_come(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(CURIOUS)
    pieces = told(tokenizer, ids)
    assert "".join(pieces) == CURIOUS and "\ufffd" not in "".join(pieces)
    assert len(ids) > len(CURIOUS) >= len(pieces)  # it comes as early as it can
    for n in range(len(ids)):
        shown = "".join(told(tokenizer, ids[:n]))
        assert shown == tokenizer.decode_bytes(ids[:n]).decode("utf-8", "ignore")  # whole characters, and all of them


@pytest.mark.parametrize("stop", ["☃", "ße ☃", "🚀 ש", "שלום"])
def test_a_stop_text_may_be_spread_over_tokens(stop: str) -> None:
    ids = ByteTokenizer().encode(CURIOUS)
    assert "".join(told(ByteTokenizer(), ids, stop)) == CURIOUS[: CURIOUS.index(stop)]


def test_bytes_that_are_no_character_are_marked() -> None:
    assert "".join(told(ByteTokenizer(), [0xE2, 0x98, 0x41, 0xFF, 0x42])) == "\ufffdA\ufffdB"


def test_where_to_begin_without_a_prompt() -> None:
    assert beginning(CharTokenizer("ab", end_of_text=True)) == [2]
    assert beginning(ByteTokenizer()) == [256]
    assert beginning(ByteTokenizer(), n_documents=1) == [10]  # it has never seen how a document ends
    assert beginning(CharTokenizer("\nab")) == [0]
    assert beginning(CharTokenizer("ab")) == [0]
