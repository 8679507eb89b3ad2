"""The tokenizer of a text: from its training part alone, from a bounded sample, told in sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling.config import CorpusSettings
from groundling.data.corpus import Corpus
from groundling.data.sources import find_source
from groundling.data.tokenizers import train as fitting
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer


def fit(path: Path, said: list[str] | None = None, **settings: Any) -> Tokenizer:
    given = CorpusSettings(**{"tokenizer": "bpe", "vocab_size": 400} | settings)
    return fitting.fit_tokenizer(find_source(path), given, [].append if said is None else said.append, fitting.silent)


def test_pieces_are_learned_from_the_training_part_alone(write: Callable[..., Path], prose: str) -> None:
    start = prose[:9000]
    one, other = (fit(write(name, start + end * 100)) for name, end in (("a", "zyxwvu qqq"), ("b", "other word")))
    assert one == other == fit(write("c", start + "." * 1000))
    assert one.vocab_size == 400
    alone = BpeTokenizer.fit([start], 400)
    assert one == alone
    assert fit(write("a", start + "zyxwvu qqq" * 100), val_fraction=0.01) != alone


def test_pieces_are_learned_from_the_training_documents_alone(write: Callable[..., Path], prose: str) -> None:
    for i in range(10):
        write(f"docs/{i}.txt", prose[1000 * i : 1000 * i + 999])
    before = fit(Path("docs"))
    write("docs/9.txt", "zzz " * 250)
    assert fit(Path("docs")) == before
    write("docs/0.txt", "zzz " * 250)
    assert fit(Path("docs")) != before


def test_a_long_text_is_sampled_evenly_and_that_is_said(
    write: Callable[..., Path], prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_SAMPLE", 10_000)
    monkeypatch.setattr("groundling.data.files.CHUNK", 1000)
    read: list[str] = []
    learn, said = BpeTokenizer.fit, list[str]()
    monkeypatch.setattr(BpeTokenizer, "fit", lambda chunks, size: read.extend(chunks) or learn(read, size))
    assert fit(write("a.txt", prose), said) == learn(read, 400)
    assert 9_000 <= sum(map(len, read)) <= 10_000
    assert len(read) >= 27  # a part of every chunk, to the end of the training part
    assert said == ["Training the tokenizer on 0 million characters, spread evenly over the text."]


def test_a_text_that_gives_fewer_tokens_says_so(write: Callable[..., Path]) -> None:
    said: list[str] = []
    tokenizer = fit(write("a.txt", "to be or not to be " * 3), said, vocab_size=4096)
    assert 257 < tokenizer.vocab_size < 300
    assert said == [
        f"The vocabulary has {tokenizer.vocab_size} tokens instead of 4,096: no other pair of tokens occurs twice in "
        "the training part."
    ]


def test_from_python(write: Callable[..., Path], prose: str) -> None:
    path = write("a.txt", prose)
    assert groundling.train_tokenizer(path, kind="char") == CharTokenizer.fit([prose])
    assert groundling.train_tokenizer(path, kind="byte") == ByteTokenizer()
    made = groundling.train_tokenizer(path, vocab_size=300)
    assert made == Corpus.open(str(path), CorpusSettings(tokenizer="bpe", vocab_size=300)).tokenizer
    with pytest.raises(ValueError, match="--vocab-size must be at least 257"):
        groundling.train_tokenizer(path, vocab_size=256)


def test_progress_comes_to_the_whole(write: Callable[..., Path], prose: str) -> None:
    last: dict[str, tuple[int, int]] = {}
    path = write("a.txt", prose)
    groundling.train_tokenizer(path, vocab_size=300, progress=lambda what, *done: last.update({what: done}))
    assert list(last) == ["reading", "training a tokenizer on"]
    assert all(done == whole == path.stat().st_size for done, whole in last.values())
