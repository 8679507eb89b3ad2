"""Token files: the right ids, prepared once, split at the right place, rebuilt when damaged."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundling import storage
from groundling.config import CorpusSettings
from groundling.data import corpus as tokens
from groundling.data import files
from groundling.data.corpus import Corpus, prepare, reopen
from groundling.data.files import TextFile
from groundling.data.sources import Source, find_source
from groundling.data.split import split_point
from groundling.data.tokenizers.base import CharTokenizer

DEFAULT = CorpusSettings()
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind — ☃ 𝔘\n" * 5


@pytest.fixture
def folder_of(write: Callable[..., Path]) -> Callable[..., Source]:
    """A folder of documents of the given texts, in order."""

    def folder_of(*texts: str) -> Source:
        for i, text in enumerate(texts):
            path = write(f"folder/{i:04}.txt", text)
        return find_source(path.parent)

    return folder_of


def ids(corpus: Corpus) -> list[int]:
    """All of them, from the file's beginning to its end."""
    both = [part.read(0, len(part)).tolist() if len(part) else [] for part in (corpus.train, corpus.validation)]
    return both[0] + both[1]


def text_of(corpus: Corpus) -> str:
    return corpus.tokenizer.decode(ids(corpus))


def prepared() -> list[Path]:
    """The folders of tokens in the cache, and what is left of half-written ones."""
    return [path for path in (storage.cache_folder() / "tokens").glob("*") if path.is_dir()]


class Phases(list[str]):
    """What was done, as progress tells it."""

    def __call__(self, doing: str, done: int, total: int) -> None:
        if not self or self[-1] != doing:
            self.append(doing)


def test_a_text_comes_back_as_it_was(write: Callable[..., Path]) -> None:
    corpus = Corpus.open(write("hamlet.txt", TEXT))
    assert text_of(corpus) == TEXT
    assert corpus.tokenizer == CharTokenizer.fit([TEXT])
    assert (corpus.name, corpus.n_documents, corpus.n_characters) == ("hamlet", 1, len(TEXT))


def test_what_was_prepared_is_reused_without_reading_the_text(write: Callable[..., Path]) -> None:
    source, first, second = find_source(write("a.txt", TEXT)), Phases(), Phases()
    a = prepare(source, DEFAULT, progress=first)
    made = [(path, path.stat().st_mtime_ns) for path in sorted(prepared()[0].iterdir())]
    b = prepare(source, DEFAULT, progress=second)
    assert first == ["checking", "reading", "tokenizing"]
    assert second == ["checking"]  # hashed, to know that it is the same
    assert a == b
    assert made == [(path, path.stat().st_mtime_ns) for path in sorted(prepared()[0].iterdir())]


def test_progress_ends_at_the_whole(write: Callable[..., Path]) -> None:
    source, last = find_source(write("a.txt", "\ufeff" + "☃𝔘é" * 500)), dict[str, tuple[int, int]]()
    prepare(source, DEFAULT, progress=lambda doing, done, total: last.update({doing: (done, total)}))
    whole = (source.size, source.size)
    assert last == {"checking": whole, "reading": whole, "tokenizing": whole}


def test_progress_of_a_compressed_text_does_not_pass_the_whole(write: Callable[..., Path]) -> None:
    source, seen = find_source(write("a.txt.gz", gzip.compress(TEXT.encode() * 50))), list[bool]()
    prepare(source, DEFAULT, progress=lambda _, done, total: seen.append(0 <= done <= total == source.size))
    assert seen and all(seen)


@pytest.mark.parametrize(("size", "dtype", "width"), [(2**16, "uint16", 2), (2**16 + 1, "uint32", 4)])
def test_ids_take_two_bytes_as_long_as_they_fit(write: Callable[..., Path], size: int, dtype: str, width: int) -> None:
    text = "".join(chr(0x20000 + i) for i in range(42_000)) + "".join(chr(0x10000 + i) for i in range(size - 42_000))
    corpus = Corpus.open(write("a.txt", text))
    assert corpus.tokenizer.vocab_size == size
    assert corpus.train.dtype == dtype and corpus.train.path.stat().st_size == width * size
    assert text_of(corpus) == text and max(ids(corpus)) == size - 1


def test_the_manifest_counts_what_is_there(folder_of: Callable[..., Source]) -> None:
    corpus = prepare(folder_of("ab", "☃", "cab"), DEFAULT)
    assert storage.verify(prepared()[0]) == {
        "fingerprint": corpus.fingerprint, "dtype": "uint16", "tokens": 9, "characters": 6, "documents": 3,
        "vocab_size": 5,
    }  # fmt: skip
    assert np.fromfile(prepared()[0] / "documents.bin", dtype=np.int64).tolist() == [3, 5, 9]


def test_every_document_ends_with_the_end_of_text(folder_of: Callable[..., Source]) -> None:
    corpus = prepare(folder_of("ba", "b", "c"), DEFAULT)
    end = corpus.tokenizer.end_of_text_id
    assert end == 3 and ids(corpus) == [1, 0, end, 1, end, 2, end]
    assert text_of(corpus) == "babc"


def test_a_single_document_has_no_end_of_text(folder_of: Callable[..., Source]) -> None:
    corpus = prepare(folder_of("ba"), DEFAULT)
    assert corpus.tokenizer.end_of_text_id is None and ids(corpus) == [1, 0]


# --- the split


def test_one_document_is_cut_at_nine_tenths(write: Callable[..., Path]) -> None:
    corpus = Corpus.open(write("a.txt", "abcdefghij" * 100))
    assert (len(corpus.train), len(corpus.validation)) == (900, 100)


@pytest.mark.parametrize("fraction", [0.5, 0.25, 0.01])
def test_the_share_of_the_validation_part_is_a_setting(write: Callable[..., Path], fraction: float) -> None:
    corpus = Corpus.open(write("a.txt", "abcdefghij" * 100), CorpusSettings(val_fraction=fraction))
    assert len(corpus.validation) == 1000 * fraction


def test_the_same_tokens_serve_every_split(write: Callable[..., Path]) -> None:
    path, phases = write("a.txt", TEXT), Phases()
    Corpus.open(path)
    prepare(find_source(path), CorpusSettings(val_fraction=0.3), progress=phases)
    assert phases == ["checking"]


@pytest.mark.parametrize(
    ("lengths", "validation"),
    [
        ([30, 30, 30, 9], 10),  # a border at the very place
        ([400, 480, 60, 55], 60 + 55 + 2),  # the border a little before it: 117 for a share of 100
        ([400, 540, 30, 25], 30 + 25 + 2),  # the border a little after it
        ([890, 90, 10, 5], 90 + 10 + 5 + 3),  # the nearest of several
        ([500, 300, 195], 196),  # nearly twice the share is near enough
        ([700, 295], 100),  # nearly three times the share: cut inside the document
        ([960, 35], 100),  # a third of the share: cut inside the document
    ],
)
def test_several_documents_are_parted_at_a_border_that_is_near(
    folder_of: Callable[..., Source], lengths: list[int], validation: int
) -> None:
    corpus = prepare(folder_of(*[("ab" * 500)[:n] for n in lengths]), DEFAULT)
    assert len(corpus.validation) == validation
    assert len(corpus.train) == sum(lengths) + len(lengths) - validation


def test_parts_that_end_at_a_border_end_with_the_end_of_text(folder_of: Callable[..., Source]) -> None:
    corpus = prepare(folder_of(*["abcdefghi"] * 10), DEFAULT)
    end = corpus.tokenizer.end_of_text_id
    assert corpus.train.read(89, 90).tolist() == [end] == corpus.validation.read(9, 10).tolist()
    assert corpus.tokenizer.decode(corpus.validation.read(0, 10)) == "abcdefghi"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.floats(0.001, 0.5))
def test_any_split_keeps_all_and_stays_near_its_share(lengths: list[int], fraction: float) -> None:
    ends, total = np.cumsum(lengths), sum(lengths)
    cut = int((1 - fraction) * total)
    place = split_point(ends, total, fraction)
    assert 0 <= place <= total
    assert place == cut or (place in ends and 0.5 <= (total - place) / (total - cut) <= 2)


KINDS: list[dict[str, Any]] = [{"tokenizer": "char"}, {"tokenizer": "byte"}, {"tokenizer": "bpe", "vocab_size": 300}]


@settings(deadline=None)
@given(
    st.lists(st.text(st.sampled_from("ab é☃\n"), min_size=1, max_size=60), min_size=1, max_size=6),
    st.sampled_from([0.1, 0.3, 0.5]),
)
def test_the_validation_part_begins_at_the_same_character_whatever_the_tokenizer(
    texts: list[str], fraction: float
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", folder)
        files = tuple(TextFile(str(i), str(i), partial(io.BytesIO, t.encode()), len(t)) for i, t in enumerate(texts))
        parts = []
        for kind in KINDS:
            corpus = prepare(Source("x", ("x",), files), CorpusSettings(**kind, val_fraction=fraction))
            both = [corpus.tokenizer.decode_bytes(p.read(0, len(p)) if len(p) else []) for p in
                    (corpus.train, corpus.validation)]  # fmt: skip
            assert b"".join(both).decode() == "".join(texts)
            parts.append([part.decode() for part in both])  # no character is cut
    characters, as_bytes, pieces = (len(validation) for _, validation in parts)
    assert characters - (len(texts) == 1) <= as_bytes <= characters + (len(texts) == 1)
    assert pieces <= as_bytes  # a piece that lies across belongs to the training part


def test_a_place_is_found_in_a_long_text(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"{i} — ☃é\n" for i in range(2000))
    monkeypatch.setattr(tokens, "_PIECE", 100)
    monkeypatch.setattr(files, "CHUNK", 7000)
    corpora = [Corpus.open(write("a.txt", text), CorpusSettings(**kind)) for kind in KINDS]
    cut = int(0.9 * len(text))
    for corpus in corpora:
        train, validation = (corpus.tokenizer.decode(p.read(0, len(p))) for p in (corpus.train, corpus.validation))
        assert train + validation == text and cut <= len(train) < cut + 8


def test_each_tokenizer_has_tokens_of_its_own(write: Callable[..., Path]) -> None:
    kinds = [*KINDS, {"tokenizer": "bpe", "vocab_size": 290}, {"tokenizer": "bpe", "vocab_size": 300}]
    corpora = [Corpus.open(write("a.txt", TEXT), CorpusSettings(**kind)) for kind in kinds]
    assert [corpus.tokenizer.vocab_size for corpus in corpora] == [len(set(TEXT)), 257, 300, 290, 300]
    assert all(text_of(corpus) == TEXT for corpus in corpora) and len(prepared()) == 4


def test_a_tokenizer_from_a_file_is_used(write: Callable[..., Path]) -> None:
    CharTokenizer.fit([TEXT + "ξ"]).save("mine.json")
    corpus = Corpus.open(write("a.txt", TEXT), CorpusSettings(tokenizer="mine.json"))
    assert "ξ" in corpus.tokenizer.characters and text_of(corpus) == TEXT
    CharTokenizer("ab").save("mine.json")
    with pytest.raises(ValueError, match=r"^\S*a\.txt: The character 'q'"):
        Corpus.open(write("a.txt", "abq"), CorpusSettings(tokenizer="mine.json"))


@pytest.mark.parametrize("content", [b"ab\xffcd", b"word " * 3 + b"\xe2\x98"])
def test_a_text_that_is_not_utf8_is_named_once(write: Callable[..., Path], content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^\S*a\.txt is not valid UTF-8"):
        Corpus.open(write("a.txt", content), CorpusSettings(tokenizer="byte"))


# --- fingerprints


def test_one_character_changes_the_fingerprint(write: Callable[..., Path]) -> None:
    a, b = Corpus.open(write("a.txt", TEXT)), Corpus.open(write("b.txt", TEXT.replace("T", "t", 1)))
    assert a.fingerprint != b.fingerprint and a.train.path != b.train.path
    assert text_of(b).startswith("to be")


def test_an_edited_file_is_prepared_anew(write: Callable[..., Path]) -> None:
    before = Corpus.open(write("a.txt", TEXT))
    after = Corpus.open(write("a.txt", TEXT + "!"))
    assert text_of(before) == TEXT and text_of(after) == TEXT + "!"


def test_a_name_does_not_change_the_fingerprint(write: Callable[..., Path]) -> None:
    a = Corpus.open(write("a.txt", TEXT))
    renamed = Corpus.open(write("elsewhere/b.md", TEXT))
    packed = Corpus.open(write("c.txt.gz", gzip.compress(TEXT.encode())))
    assert a.fingerprint == renamed.fingerprint == packed.fingerprint
    assert a.train == renamed.train == packed.train and len(prepared()) == 1
    assert (renamed.name, packed.name) == ("b", "c")


def test_where_documents_end_is_part_of_the_fingerprint(folder_of: Callable[..., Source]) -> None:
    prints = {prepare(folder_of(*texts), DEFAULT).fingerprint for texts in (("ab", "c"), ("ba", "c"), ("a", "bc"))}
    assert len(prints) == 3


# --- reading


def test_reading_in_chunks_gives_the_same_ids(
    folder_of: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", 5)
    corpus = prepare(folder_of(TEXT, "☃𝔘é" * 20), DEFAULT)
    tokenizer = CharTokenizer.fit([TEXT, "é"], end_of_text=True)
    end = [tokenizer.end_of_text_id]
    assert corpus.tokenizer == tokenizer
    assert ids(corpus) == tokenizer.encode(TEXT) + end + tokenizer.encode("☃𝔘é" * 20) + end


def test_windows_and_ranges_are_where_they_say(write: Callable[..., Path]) -> None:
    corpus = Corpus.open(write("a.txt", TEXT))
    whole, cut = np.array(corpus.tokenizer.encode(TEXT)), len(corpus.train)
    windows = corpus.train.windows(np.array([5, 0, cut - 9]), 9)
    assert windows.dtype == np.int64
    assert windows.tolist() == [whole[i : i + 9].tolist() for i in (5, 0, cut - 9)]
    assert corpus.train.read(3, 20).tolist() == whole[3:20].tolist()
    assert corpus.validation.read(2, 8).tolist() == whole[cut + 2 : cut + 8].tolist()


@pytest.mark.parametrize("start", [-1, 1])
def test_a_window_never_leaves_its_part(write: Callable[..., Path], start: int) -> None:
    train = Corpus.open(write("a.txt", TEXT)).train
    with pytest.raises(AssertionError):
        train.windows(np.array([start]), len(train))


# --- a tokenizer that is there already


def test_a_text_is_read_with_the_tokenizer_of_a_model(write: Callable[..., Path]) -> None:
    tokenizer = CharTokenizer("abcd", end_of_text=True)
    corpus = prepare(find_source(write("a.txt", "dad")), DEFAULT, tokenizer=tokenizer)
    assert corpus.tokenizer == tokenizer and ids(corpus) == [3, 0, 3, 4]
    assert prepare(find_source("a.txt"), DEFAULT).tokenizer == CharTokenizer("ad")  # the two are kept apart


def test_an_unknown_character_names_document_and_place(
    folder_of: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", 4)
    source = folder_of("abab", "ababa☃baZ")
    with pytest.raises(ValueError) as refused:
        prepare(source, DEFAULT, tokenizer=CharTokenizer("ab☃"))
    assert str(refused.value).startswith(f"{source.files[1].name}: The character 'Z' (U+005A) at position 8 is not")
    assert prepared() == []


def test_unknown_characters_are_left_out_if_asked(write: Callable[..., Path]) -> None:
    source, tokenizer = find_source(write("a.txt", "aZbZ")), CharTokenizer("ab")
    assert text_of(prepare(source, DEFAULT, tokenizer=tokenizer, unknown="skip")) == "ab"
    with pytest.raises(ValueError, match="'Z'"):  # what was left out once is still an error where that was not asked
        prepare(source, DEFAULT, tokenizer=tokenizer)


def test_a_text_of_unknown_characters_only_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="a has no character that is in the vocabulary"):
        prepare(find_source(write("a.txt", "xyz")), DEFAULT, tokenizer=CharTokenizer("ab"), unknown="skip")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b""), ("a.txt", b"\xef\xbb\xbf"), ("a.txt.gz", b""), ("a.txt.gz", gzip.compress(b"", mtime=0))],
)
def test_a_text_without_a_character_is_refused(write: Callable[..., Path], name: str, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^a is empty: there is no text in it\.$"):
        Corpus.open(write(name, content))
    assert prepared() == []


def test_one_character_is_prepared(write: Callable[..., Path]) -> None:
    corpus = Corpus.open(write("a.txt", "x"))
    assert ids(corpus) == [0] and corpus.tokenizer.vocab_size == 1


def test_notices_are_said_once(folder_of: Callable[..., Source]) -> None:
    Path("folder").mkdir()
    Path("folder/nothing").touch()
    said: list[str] = []
    prepare(folder_of("\ufeffab", "c"), DEFAULT, notice=said.append)
    assert len(said) == 2
    assert "Left out 1: 1 empty (nothing)." in said[0] and "begins with a UTF-8 byte-order mark" in said[1]


# --- the cache


def damage(file: Path, how: str) -> None:
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-2])
    else:
        file.write_bytes(b"\0" * file.stat().st_size)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in ("tokens.bin", "documents.bin", "places.bin", "tokenizer.json")
        for how in ("missing", "truncated")
    ]
    + [("manifest.json", how) for how in ("missing", "truncated", "zeroed")]
    + [("tokenizer.json", "zeroed")],
)
def test_a_damaged_folder_is_made_again(write: Callable[..., Path], name: str, how: str) -> None:
    path, phases = write("a.txt", TEXT), Phases()
    Corpus.open(path)
    damage(prepared()[0] / name, how)
    again = prepare(find_source(path), DEFAULT, progress=phases)
    assert phases == ["checking", "tokenizing"]
    assert text_of(again) == TEXT and len(prepared()) == 1
    storage.verify(prepared()[0])


KILLED = """
import os, sys
from groundling.data.tokenizers.base import CharTokenizer
from groundling.data.corpus import Corpus
CharTokenizer.encode_array = lambda *_, **__: os._exit(9)
Corpus.open(sys.argv[1])
"""


def test_a_killed_preparation_leaves_nothing_that_counts_or_stays(write: Callable[..., Path]) -> None:
    path = write("a.txt", TEXT)
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == 9
    assert [p.name.startswith(".tmp-") for p in prepared()] == [True]
    assert text_of(Corpus.open(path)) == TEXT
    assert len(prepared()) == 1


def test_two_that_begin_at_once_make_it_once(write: Callable[..., Path]) -> None:
    path, phases = write("a.txt", TEXT * 200), [Phases() for _ in range(4)]
    results, ready = list[Corpus](), threading.Barrier(4)

    def work(progress: Phases) -> None:
        ready.wait()
        results.append(prepare(find_source(path), DEFAULT, progress=progress))

    threads = [threading.Thread(target=work, args=(p,)) for p in phases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(corpus == results[0] for corpus in results)
    assert sorted(p.count("tokenizing") for p in phases) == [0, 0, 0, 1]


def test_a_text_that_is_gone_is_reopened_from_the_cache(write: Callable[..., Path]) -> None:
    path = write("a.txt", TEXT)
    corpus = Corpus.open(path)
    path.unlink()
    again = reopen(corpus.fingerprint, corpus.name, corpus.tokenizer, DEFAULT)
    assert again == corpus and text_of(again) == TEXT
    assert reopen(corpus.fingerprint, "a", CharTokenizer("ab"), DEFAULT) is None
    assert reopen("0" * 64, "a", corpus.tokenizer, DEFAULT) is None


PEAK = """
import json, re, sys
from pathlib import Path
from groundling.config import CorpusSettings
from groundling.data.sources import find_source
from groundling.data.corpus import prepare

def peak():
    status = Path("/proc/self/status")  # getrusage's figure begins at the parent's on Linux
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
corpus = prepare(find_source(sys.argv[1]), CorpusSettings())
print(json.dumps({"growth": peak() - before, "characters": corpus.n_characters}))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs getrusage")
@pytest.mark.parametrize("packed", [False, True])
def test_memory_does_not_grow_with_the_text(tmp_path: Path, packed: bool) -> None:
    path, n = tmp_path / ("a.txt.gz" if packed else "a.txt"), 600_000
    with gzip.open(path, "wb", 1) if packed else path.open("wb") as file:
        for _ in range(10):
            file.write((TEXT * (n // 10)).encode())
    result = subprocess.run([sys.executable, "-c", PEAK, str(path)], check=True, capture_output=True, text=True)
    measured = json.loads(result.stdout)
    assert measured["characters"] == n * len(TEXT) > 200_000_000
    assert measured["growth"] < 300e6
