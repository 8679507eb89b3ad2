"""Learned pieces: any text comes back, in parts as in one, and the library `tokenizers` gives the same ids."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from groundling.data.tokenizers import bpe
from groundling.data.tokenizers.base import END_OF_TEXT, ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.data.tokenizers.huggingface import HuggingFaceTokenizer

# Words, spaces of all kinds, scripts in both directions, marks, emoji of several code points, digits, contractions.
CURIOUS = ["the", " the", "'s", "'", "x", "7", "42", " ", "  ", "\n", "\r\n", "\t", "\0", "\u00a0", "\u2028", "é",
           "e\u0301", "שלום", "العربية", "नमस्ते", "字", "👩‍🚀", "🇺🇳", "𝔘", "_", "...", "▁", "Ġ", END_OF_TEXT,
           "<0x0A>"]  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(CURIOUS)).map("".join)


@cache
def learned() -> BpeTokenizer:
    from pydoc_data.topics import topics

    return BpeTokenizer.fit([topics["lambda"] * 2, "שלום שלום, é 字字 👩‍🚀👩‍🚀 the\n\n\nthe\n\n\n"], 700)


@cache
def like_llama3() -> HuggingFaceTokenizer:
    words = tokenizers.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split, bytes_of = pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    return HuggingFaceTokenizer(definition(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=500, special_tokens=["<|end_of_text|>"], show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
        pre_tokenizer=pre_tokenizers.Sequence([split, bytes_of]),
    ))  # fmt: skip


@cache
def like_llama2() -> HuggingFaceTokenizer:
    """Characters with ▁ for the space, one more before the text, and bytes for what is unknown."""
    made = definition(
        models.BPE(byte_fallback=True, unk_token="<unk>"),
        trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)],
                            show_progress=False),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    )  # fmt: skip
    return HuggingFaceTokenizer(made)


def definition(model: Any, trainer: Any, **parts: Any) -> dict[str, Any]:
    library = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(library, name, part)
    library.train_from_iterator(["the theory of the other: that there then\n" * 20], trainer)
    return json.loads(library.to_str())


BYTE_LEVEL = [learned, like_llama3, ByteTokenizer]
each = pytest.mark.parametrize("make", BYTE_LEVEL, ids=["bpe", "llama3", "byte"])


@each
@settings(deadline=None)  # tokenizers are learned in between
@given(text=texts)
def test_any_text_comes_back_as_it_was(make: Any, text: str) -> None:
    tokenizer = make()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(np.array(ids)) == text.encode() == b"".join(tokenizer.pieces[i] for i in ids)
    sizes = [table[ids].sum() if ids else 0 for table in tokenizer.sizes]
    assert sizes == [len(text.encode()), len(text)]
    assert tokenizer.end_of_text_id not in ids


@settings(deadline=None)  # tokenizers are learned in between
@given(text=texts)
def test_a_tokenizer_of_words_and_bytes_gives_text_back_too(text: str) -> None:
    tokenizer = like_llama2()
    assert tokenizer.end_of_text_id == 1
    if "▁" in text:  # which is its space
        with pytest.raises(ValueError, match=r"changes the text: .▁"):
            tokenizer.encode(text)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@each
@settings(deadline=None)  # tokenizers are learned in between
@given(text=texts, data=st.data())
def test_chunks_give_the_ids_of_the_whole(make: Any, text: str, data: st.DataObject) -> None:
    tokenizer = make()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert [i for piece in tokenizer.encode_chunks(chunks) for i in piece.tolist()] == tokenizer.encode(text)


@settings(deadline=None)  # tokenizers are learned in between
@given(text=st.text(st.sampled_from("ab .7_\n\r\t'é字")), part=st.integers(1, 8))
def test_parts_that_are_encoded_one_by_one_give_the_ids_of_the_whole(text: str, part: int) -> None:
    whole = {make: make()._library.encode(text).ids for make in (learned, like_llama3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_PART", part)
        for make, ids in whole.items():
            assert make().encode(text) == ids


def test_chunks_of_a_text_are_encoded_as_they_come() -> None:
    text, given = "word and words. " * 300, []

    def chunks() -> Any:
        for i in range(0, len(text), 100):
            given.append(i)
            yield text[i : i + 100]

    pieces = learned().encode_chunks(chunks())
    next(pieces)
    assert len(given) == 1
    assert sum(map(len, pieces)) > 100


def test_a_text_without_a_place_to_cut_is_cut_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "_LONGEST", 1000)
    pieces = list(learned().encode_chunks(["x+y=" * 100] * 5))
    assert len(pieces) == 2 and learned().decode(np.concatenate(pieces)) == "x+y=" * 500


@pytest.mark.parametrize("make", [learned, like_llama3, like_llama2, ByteTokenizer])
def test_half_a_surrogate_pair_is_refused_with_its_place(make: Any) -> None:
    with pytest.raises(ValueError, match=r"^The text has a lone surrogate \(U\+D83D\) at position 12: half of") as said:
        make().encode_array("ab\ud83d", offset=10)
    assert "\n" not in str(said.value)
    assert make().decode(make().encode("ab\ud83dc", "skip")) == "abc"


# --- the same ids in the library


@pytest.mark.parametrize("make", [learned, like_llama3, like_llama2, ByteTokenizer])
@settings(deadline=None)  # tokenizers are learned in between
@given(text=texts)
def test_exported_it_gives_the_same_ids(make: Any, text: str) -> None:
    tokenizer = make()
    library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.to_huggingface()))
    library.encode_special_tokens = True
    if make is not like_llama2 or "▁" not in text:
        assert library.encode(text).ids == tokenizer.encode(text)
    if make in (learned, ByteTokenizer):
        assert library.decode(library.encode(text).ids) == text
        assert library.get_vocab_size() == tokenizer.vocab_size


@settings(deadline=None)  # tokenizers are learned in between
@given(data=st.data(), end_of_text=st.booleans())
def test_exported_characters_give_the_same_ids(data: st.DataObject, end_of_text: bool) -> None:
    vocabulary = sorted(data.draw(st.sets(st.characters(exclude_categories=["Cs"]), min_size=1)))
    tokenizer = CharTokenizer(vocabulary, end_of_text)
    text = data.draw(st.text(st.sampled_from(vocabulary)))
    library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.to_huggingface()))
    library.encode_special_tokens = True
    assert library.encode(text).ids == tokenizer.encode(text)
    assert library.decode(tokenizer.encode(text)) == text
    assert library.get_vocab_size() == tokenizer.vocab_size
    unknown = data.draw(texts)
    assert library.encode(unknown).ids == tokenizer.encode(unknown, "skip")


def test_an_exported_tokenizer_serves_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    for tokenizer in (learned(), ByteTokenizer(), CharTokenizer.fit(["the question ☃"], end_of_text=True)):
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.to_huggingface()))
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=END_OF_TEXT)
        assert theirs("the question ☃")["input_ids"] == tokenizer.encode("the question ☃")
        assert theirs.eos_token_id == tokenizer.end_of_text_id and len(theirs) == tokenizer.vocab_size
        assert theirs.decode(tokenizer.encode("the question ☃")) == "the question ☃"


# --- learning


def test_the_commonest_pair_is_merged_first() -> None:
    tokenizer = BpeTokenizer.fit(["ab " * 10 + "cd " * 5 + "xyz"], 1000)
    assert tokenizer.merges[:2] == (("a", "b"), ("Ġ", "ab"))
    assert ("c", "d") in tokenizer.merges and ("x", "y") not in tokenizer.merges  # once is not often
    assert tokenizer.vocab_size == 256 + len(tokenizer.merges) + 1 == tokenizer.end_of_text_id + 1
    assert len(BpeTokenizer.fit(["ab " * 10 + "cd " * 5], 258).merges) == 1


SAME = """
import sys; from groundling.data.tokenizers.bpe import BpeTokenizer
print(BpeTokenizer.fit(sys.stdin.read().split("|"), 400).fingerprint)
"""


def test_the_same_text_gives_the_same_tokenizer_in_any_process_and_chunks(prose: str) -> None:
    there = [
        subprocess.run([sys.executable, "-c", SAME], input=given, capture_output=True, text=True, check=True).stdout
        for given in (prose.replace("|", " "), prose.replace("|", " "))
    ]
    here = BpeTokenizer.fit([prose.replace("|", " ")[i : i + 777] for i in range(0, len(prose), 777)], 400)
    assert {line.strip() for line in there} == {here.fingerprint}


def test_no_text_gives_the_bytes() -> None:
    assert BpeTokenizer.fit([], 5000).vocab_size == 257
    assert BpeTokenizer.fit([""], 5000).encode("") == []


# --- files


@pytest.mark.parametrize("make", [learned, like_llama3, like_llama2, ByteTokenizer])
def test_a_saved_tokenizer_comes_back_equal(tmp_path: Path, make: Any) -> None:
    make().save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert type(loaded) is type(make()) and loaded == make() and loaded.fingerprint == make().fingerprint
        assert (loaded.vocab_size, loaded.end_of_text_id) == (make().vocab_size, make().end_of_text_id)
        assert loaded.encode("the other " + END_OF_TEXT) == make().encode("the other " + END_OF_TEXT)


def test_the_fingerprints_stay_the_same_from_version_to_version() -> None:
    small = BpeTokenizer(["a", "b", "ab", END_OF_TEXT], [("a", "b")])
    assert ByteTokenizer().fingerprint == ("acc1ef7b00c876de33f3ee65324bea1cc83ff84c3839ea7a0cfc3acfa3efb6c7")
    assert small.fingerprint == ("58ec788f19573bb6c38d576a88bb302ac5a7058e57769661ab66d6c0a023f4f8")


def gpt2_files(folder: Path, **changes: str) -> Path:
    made = learned()
    (folder / "vocab.json").write_text(
        changes.get("vocab", json.dumps({token: i for i, token in enumerate(made.vocabulary)})), encoding="utf-8"
    )
    lines = changes.get("merges", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in made.merges))
    (folder / "merges.txt").write_text(lines, encoding="utf-8")
    return folder


def test_gpt2s_files_are_read(tmp_path: Path) -> None:
    for path in (gpt2_files(tmp_path), tmp_path / "vocab.json"):
        loaded = Tokenizer.load(path)
        assert loaded == learned() and loaded.end_of_text_id == learned().vocab_size - 1
    theirs = models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    library = tokenizers.Tokenizer(theirs)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert library.encode("then, the  'other'\n").ids == loaded.encode("then, the  'other'\n")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab": '{"a": 0, "b": 2}'}, "its ids are not 0 to 1"),
        ({"vocab": "{}"}, "does not hold a tokenizer"),
        ({"vocab": '{"a": "b"}'}, "does not hold a tokenizer"),
        ({"vocab": '{"a": 0, "☃": 1}'}, "GPT-2's letters for bytes"),
        ({"merges": "a b c\n"}, r"The merge \['a', 'b', 'c'\] must be two tokens that join to a third in the"),
        ({"merges": "a ☃\n"}, r"merges.txt are damaged: The merge"),
    ],
)
def test_damaged_files_of_gpt2_are_refused(tmp_path: Path, changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Tokenizer.load(gpt2_files(tmp_path, **changes))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    (gpt2_files(tmp_path) / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs GPT-2's merges\.txt beside it"):
        Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json"):
        Tokenizer.load(Path(__file__).parent)
    with pytest.raises(FileNotFoundError, match="There is no tokenizer at"):
        Tokenizer.load("nowhere.json")


GOOD: dict[str, Any] = {
    "kind": "bpe", "version": 1, "vocabulary": ["a", "b", "ab", END_OF_TEXT], "merges": [["a", "b"]],
    "special_tokens": {END_OF_TEXT: 3},
}  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2}, {"vocabulary": None}, {"vocabulary": ["a", 1]}, {"merges": "ab"}, {"merges": [["a"]]},
        {"vocabulary": ["a", "a", "ab", END_OF_TEXT]}, {"vocabulary": ["a", "☃", "a☃", END_OF_TEXT]},
        {"vocabulary": ["", "b", "ab", END_OF_TEXT]}, {"merges": [["a", "ab"]]}, {"merges": [[1, 2]]},
        {"merges": [["a", "b", "c"]]}, {"special_tokens": {}}, {"special_tokens": {END_OF_TEXT: 2}},
        {"kind": "byte"}, {"kind": "huggingface"}, {"kind": "huggingface", "definition": {"model": {}}},
        {"kind": "huggingface", "definition": {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}},
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOOD | damage))
    with pytest.raises(ValueError, match=r"tokenizer\.json (is damaged|does not hold a tokenizer)"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_the_file_of_these_cases_would_load(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOOD))
    assert Tokenizer.load(tmp_path).encode("abba") == [2, 1, 0]


# --- others' tokenizers


def test_a_tokenizer_of_the_library_is_read_with_its_own_ids(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(like_llama3().definition), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded == like_llama3() and loaded.end_of_text_id == 0
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert loaded.encode("the other's 12345\n\n  then") == theirs.encode("the other's 12345\n\n  then").ids


def test_a_text_that_a_tokenizer_would_change_is_refused() -> None:
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    composing = definition(models.BPE(), trainer, normalizer=normalizers.NFC(), pre_tokenizer=bytes_of)
    tokenizer = HuggingFaceTokenizer(composing)
    assert tokenizer.decode(tokenizer.encode("é the")) == "é the"
    with pytest.raises(
        ValueError, match=r"^This tokenizer changes the text \(NFC\): 'e\u0301' at position 14 would not decode"
    ):
        tokenizer.encode_array("the e\u0301", offset=10)
    assert tokenizer.decode(tokenizer.encode("the e\u0301", "skip")) == "the é"


def test_a_tokenizer_with_tokens_of_several_words_reads_documents_whole() -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    across = HuggingFaceTokenizer(
        definition(models.BPE(), trainer, pre_tokenizer=pre_tokenizers.ByteLevel(False, use_regex=False))
    )
    assert any(b"e o" in piece for piece in across.pieces)
    pieces = list(across.encode_chunks(["the theory of th", "e other"]))
    assert len(pieces) == 1 and pieces[0].tolist() == across.encode("the theory of the other")


def test_a_prompt_is_converted_to_the_unicode_form_that_a_bpe_has_learned() -> None:
    composed = "größer schöner "
    decomposed = unicodedata.normalize("NFD", composed)
    for trained_on, other in ((composed, decomposed), (decomposed, composed)):
        tokenizer = BpeTokenizer.fit([trained_on * 20], 300)
        assert tokenizer.fit_prompt(other)[0] == trained_on and tokenizer.fit_prompt(trained_on) == (trained_on, "")
    assert BpeTokenizer.fit(["the sea " * 20], 300).fit_prompt(decomposed) == (decomposed, "")  # it knows neither


def test_a_prompt_is_converted_to_the_form_of_a_normalizer() -> None:
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    composing = definition(models.BPE(), trainer, normalizer=normalizers.NFC(), pre_tokenizer=bytes_of)
    tokenizer = HuggingFaceTokenizer(composing)
    assert tokenizer.normalizer == "NFC" and tokenizer.fit_prompt("e\u0301 x")[0] == "é x"
