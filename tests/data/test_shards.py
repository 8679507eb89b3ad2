"""Large texts in shards: the same tokens, documents and notices as without, for any number of processes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreign_tokenizers import like_llama2, like_llama3, written
from groundling import storage
from groundling.config import CorpusSettings
from groundling.data import files
from groundling.data.characters import OddCharacters
from groundling.data.corpus import Corpus, prepare
from groundling.data.shards import duplicates, plan
from groundling.data.shards.plan import Shard, shards_of
from groundling.data.shards.read import ShardReader
from groundling.data.sources import Source, find_source
from groundling.data.tokenizers.base import Tokenizer
from groundling.data.tokenizers.train import train_tokenizer

SMALL = 3000  # bytes of a shard in these tests


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD", SMALL)


def content(path: Any, processes: int | None = None, **reading: Any) -> dict[str, Any]:
    """All that preparing a corpus gives. Without `processes`, it is prepared as a whole."""
    said: list[str] = []
    chosen = CorpusSettings(**reading)
    with pytest.MonkeyPatch.context() as patch:
        if processes is None:
            patch.setattr(plan, "SHARD", 2**40)
        for kind in ("tokens", "tokenizers"):
            storage.remove_folder(storage.cache_folder() / kind)
        corpus = prepare(find_source(path, chosen), chosen, processes=processes or 1, notice=cache(said.append))
    assert bool(corpus.train.ends) == (processes is not None)
    return {
        "tokens": corpus.train.read(0, len(corpus.train)).tolist(),
        "validation": corpus.validation.read(0, len(corpus.validation)).tolist(),
        "documents": corpus.document_ends.tolist(), "files": corpus._file_ends.tolist(),
        "characters": corpus.n_characters, "odd": corpus.odd, "tokenizer": corpus.tokenizer.to_dict(),
        "text": corpus.fingerprint, "notices": said,
    }  # fmt: skip


def entries(texts: Sequence[str]) -> bytes:
    return b"".join(json.dumps({"n": i, "text": text}).encode() + b"\n" for i, text in enumerate(texts))


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def parquet(texts: Sequence[str]) -> bytes:
    from pyarrow import BufferOutputStream, parquet, table

    file = BufferOutputStream()
    parquet.write_table(table({"text": texts}), file, row_group_size=7)
    return file.getvalue().to_pybytes()


@pytest.fixture
def texts(prose: str) -> list[str]:
    """Documents of 0 to 900 characters, some with marks, CR LF and letters of several bytes."""
    random, made = Random(0), []
    for _ in range(60):
        start = random.randrange(len(prose) - 900)
        made.append(prose[start : start + random.choice([0, 1, 30, 300, 900])] + random.choice(["", " é☃𝔘", "e\u0301"]))
    return made


@pytest.fixture
def every_format(write: Callable[..., Path], texts: list[str]) -> Path:
    """A folder with a file of each format, as it is and compressed."""
    plain = "<|endoftext|>\n".join(texts).encode()
    csv = b"text\n" + b"".join(json.dumps(t.replace('"', "")).encode().replace(b"\\n", b" ") + b"\n" for t in texts)
    contents = {
        "a.txt": b"\xef\xbb\xbf" + plain, "b.txt.gz": gzip.compress(plain), "c.txt.bz2": bz2.compress(plain),
        "d.txt.xz": lzma.compress(plain), "e.jsonl": entries(texts), "f.jsonl.gz": gzip.compress(entries(texts)),
        "g.json": json.dumps([{"text": text} for text in texts]).encode(), "h.csv": csv, "i.parquet": parquet(texts),
        "j.zip": zipped(**{"one.txt": plain, "two.jsonl": entries(texts)}), "k.txt": plain.replace(b"\n", b"\r\n"),
        "l.txt": "".join(texts).encode("utf-16"), "m.txt": b"a", "n.txt": b"\n", "o.jsonl": entries(["", "x", ""] * 90),
    }  # fmt: skip
    for name, data in contents.items():
        path = write(f"all/{name}", data)
    for i in range(30):
        write(f"all/small/{i:02}.txt", texts[i] or "-")
    return path.parent


def test_any_number_of_processes_gives_the_same(every_format: Path, small_shards: None) -> None:
    expected = content(every_format)
    assert len(shards_of(find_source(every_format))) > 30
    assert any("Skipped 180 entries" in sentence for sentence in expected["notices"])
    for processes in (1, 2, 3):
        assert content(every_format, processes) == expected


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_every_tokenizer_gives_the_same(every_format: Path, small_shards: None, kind: str) -> None:
    assert content(every_format, 1, tokenizer=kind) == content(every_format, tokenizer=kind)


@pytest.mark.parametrize(("like", "is_cut"), [(like_llama2, False), (like_llama3, True)])
def test_plain_texts_are_cut_for_tokenizers_whose_tokens_end_with_words(
    write: Callable[..., Path], prose: str, small_shards: None, like: Callable[[str], Any], is_cut: bool
) -> None:
    """Llama 2's takes words together and puts a space before a document; Llama 3's starts each with a token."""
    chosen = str(written(Path("like"), like(prose)))
    path = write("folder/a.txt", prose[:9000] + "<|endoftext|>" + prose[9000:20_000])
    write("folder/b.txt", "another one")
    expected = content(path.parent, tokenizer=chosen)
    assert content(path.parent, 1, tokenizer=chosen) == expected
    assert Tokenizer.load(chosen).can_be_cut == is_cut
    assert len(shards_of(find_source(path.parent), cut_texts=is_cut)) == (8 if is_cut else 2)


# --- where texts are cut


PIECES = ["word", " ", "\n", "\r\n", "END", "\nEND\n", "END ", "é", "☃", "x1 ", "the ", "9\n", "_ "]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(PIECES), min_size=60, max_size=400).map("".join),
    st.sampled_from(["END", "\nEND\n", "", "ND", "x1", " "]),
    st.sampled_from([7, 40, 2**22]),
)
def test_a_plain_text_is_the_same_in_parts(text: str, separator: str, chunk: int) -> None:
    """Documents that lie in several parts, separators at chunk borders and near cuts, CR LF."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", folder)
        patch.setattr(files, "CHUNK", chunk)
        patch.setattr(plan, "_SEARCHED", 32)
        path = Path(folder) / "a.txt"
        path.write_bytes(text.encode())
        source = find_source(path, CorpusSettings(document_separator=separator))
        documents = joined(source, [Shard(0, source.files)])
        patch.setattr(plan, "SHARD", 100)
        shards = shards_of(source)
        assert joined(source, shards) == documents
        assert all(shard.files[0].stop is None or shard.files[0].size > 0 for shard in shards)


def joined(source: Source, shards: Sequence[Shard]) -> list[str]:
    """The documents, each put together from its parts."""
    documents, is_open = list[str](), False
    for shard in shards:
        reader = ShardReader(shard, source.reading)
        for file in reader.files:
            for document in reader.documents(file):
                assert document.starts != is_open
                text = "".join(document.chunks)
                documents[len(documents) - is_open :] = ["".join(documents[len(documents) - is_open :]) + text]
                is_open = not document.ends
    assert not is_open
    return documents


def test_what_cannot_be_cut_is_one_shard(write: Callable[..., Path], small_shards: None) -> None:
    words = "some words " * 1000
    contents: dict[str, Any] = {
        "long.jsonl": entries(["x" * 9000]), "long.txt": "x" * 9000, "16.txt": words.encode("utf-16"),
        "a.txt.gz": gzip.compress(Random(0).randbytes(5000).hex().encode()), "a.json": json.dumps([{"text": words}]),
    }  # fmt: skip
    for name, data in contents.items():
        source = find_source(write(name, data))
        assert source.size > 1.5 * SMALL and len(shards_of(source)) == 1, name
    assert len(shards_of(find_source(write("b.txt", words)))) == 4
    assert len(shards_of(find_source(write("b.jsonl", entries([words[:500]] * 20))))) == 3


def test_parquet_is_cut_at_row_groups(write: Callable[..., Path], small_shards: None, texts: list[str]) -> None:
    path = write("a.parquet", parquet(texts))
    source = find_source(path)
    shards = shards_of(source)
    assert len(shards) == 5  # of 7 that would be equal: row groups are larger
    assert sum(shard.size for shard in shards) == source.size
    assert joined(source, shards) == [text for text in texts if text]
    assert content(path, 1) == content(path)


def test_small_files_share_a_shard(write: Callable[..., Path], small_shards: None) -> None:
    for i in range(10):
        path = write(f"folder/{i}.txt", "x" * 1000)
    assert [(shard.first, len(shard.files)) for shard in shards_of(find_source(path.parent))] == [
        (0, 3), (3, 3), (6, 3), (9, 1),
    ]  # fmt: skip


def test_windows_lie_across_files(write: Callable[..., Path], prose: str, small_shards: None) -> None:
    corpus = Corpus.open(write("a.txt", prose), CorpusSettings(tokenizer="byte"))
    assert len(corpus.train.ends) == 10 == len(list(corpus.train.path.parent.glob("tokens-*.bin")))
    starts = np.arange(0, len(corpus.train) - 7000, 997)
    windows, data = corpus.train.windows(starts, 7000), [*prose.encode(), 256]
    assert all(window.tolist() == data[start : start + 7000] for start, window in zip(starts, windows, strict=True))
    assert corpus.validation.read(5, 9).tolist() == data[len(corpus.train) :][5:9]
    assert corpus.train.stored(3, 3).tolist() == [] and corpus.train.stored(3, 5).dtype == np.uint16


# --- copies


@pytest.mark.parametrize("processes", [1, 2])
def test_only_the_first_of_equal_documents_is_read(
    write: Callable[..., Path], small_shards: None, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(duplicates, "_COMPARED", 40)  # at once
    texts = [f"document {i % 90} " * 9 for i in range(300)]
    write("folder/a.jsonl", entries(["same", *texts[:200]]))
    write("folder/b.txt", "<|endoftext|>".join(["same", "only here", *texts[200:]]))
    path = write("folder/c.txt", "same")
    said: list[str] = []
    chosen = CorpusSettings(deduplicate=True)
    corpus = prepare(find_source(path.parent), chosen, processes=processes, notice=said.append)
    whole = (
        corpus.train.read(0, len(corpus.train)).tolist() + corpus.validation.read(0, len(corpus.validation)).tolist()
    )
    found = [corpus.tokenizer.decode(ids) for ids in np.split(whole, corpus.document_ends)[:-1]]
    assert found == ["same", *texts[:90], "only here"]
    assert said[-1] == "Left out 212 of 304 documents: copies of earlier ones."
    assert corpus.n_documents == 92 and corpus._file_ends.tolist() == [91, 92, 92]
    again: list[str] = []
    prepare(find_source(path.parent), chosen, notice=again.append)
    assert again == said[:1]  # from the cache


def test_a_tokenizer_is_learned_from_what_is_left(write: Callable[..., Path], small_shards: None) -> None:
    path = write("a.jsonl", entries([f"{i} abcabc" for i in range(50)] + ["xyxyxyxyxy"] * 200 + ["end"] * 5))
    made = [Corpus.open(path, CorpusSettings("bpe", 300, deduplicate=each)).tokenizer for each in (False, True)]
    assert [b"xyxy" in tokenizer.pieces for tokenizer in made] == [True, False]
    assert all(b"abc" in tokenizer.pieces for tokenizer in made)
    from_python = train_tokenizer(path, vocab_size=300, deduplicate=True)
    assert from_python == made[1]


@given(st.lists(st.text(st.sampled_from("a\r\néee\u0301\u0301\ufeff\x00☃\u200b\u1100\u1161"), max_size=8), max_size=6))
def test_odd_characters_are_counted_across_shards(pieces: list[str]) -> None:
    whole, joined = OddCharacters(), OddCharacters()
    whole.add("".join(pieces))
    for piece in pieces:
        part = OddCharacters()
        part.add(piece)
        joined.merge(json.loads(json.dumps(part.state())))
    assert joined.counts() == whole.counts()
