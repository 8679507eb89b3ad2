"""Characters to ids and back, exactly, or a sentence that says where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.data.tokenizers.base import END_OF_TEXT, ByteTokenizer, CharTokenizer, Tokenizer

TEXT = "Größe ☃ 𝔘 e\u0301\r\n\t\0"
any_text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture
def tokenizer() -> CharTokenizer:
    return CharTokenizer.fit([TEXT])


@given(any_text)
def test_the_vocabulary_is_the_sorted_set_of_the_texts_characters(text: str) -> None:
    tokenizer = CharTokenizer.fit([text])
    assert list(tokenizer.characters) == sorted(set(text))
    assert tokenizer.vocab_size == len(set(text)) and tokenizer.end_of_text_id is None


@given(any_text, st.integers(0, 20))
def test_a_text_in_pieces_has_the_same_vocabulary(text: str, cut: int) -> None:
    assert CharTokenizer.fit([text[:cut], "", text[cut:]]) == CharTokenizer.fit([text])


@given(st.data())
def test_any_text_of_its_characters_comes_back_as_it_was(data: st.DataObject) -> None:
    vocabulary = data.draw(st.sets(st.characters(exclude_categories=["Cs"]), min_size=1))
    tokenizer = CharTokenizer(sorted(vocabulary), end_of_text=data.draw(st.booleans()))
    text = data.draw(st.text(st.sampled_from(sorted(vocabulary))))
    ids = tokenizer.encode(text)
    assert ids == [sorted(vocabulary).index(c) for c in text]
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids, dtype=np.int64)) == text


def test_ids_are_plain_integers_or_an_array(tokenizer: CharTokenizer) -> None:
    assert all(type(i) is int for i in tokenizer.encode(TEXT))
    array = tokenizer.encode_array(TEXT)
    assert array.dtype == np.uint32 and array.tolist() == tokenizer.encode(TEXT)
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    ("text", "character", "position"),
    [("𝔘 x", "'x' (U+0078)", 2), ("\x01", "'\\x01' (U+0001)", 0), ("☃☃😀 x", "'😀' (U+1F600)", 2)],
)
def test_an_unknown_character_is_named_with_its_place(
    tokenizer: CharTokenizer, text: str, character: str, position: int
) -> None:
    with pytest.raises(ValueError) as refused:
        tokenizer.encode(text)
    assert str(refused.value) == (
        f"The character {character} at position {position} is not among the {len(set(TEXT))} in the vocabulary. "
        "Remove it, or drop unknown characters with --unknown skip (sample, chat, eval, serve)."
    )


def test_the_place_counts_from_the_offset(tokenizer: CharTokenizer) -> None:
    with pytest.raises(ValueError, match="at position 1001 is"):
        tokenizer.encode_array("☃x", offset=1000)


def test_unknown_characters_are_left_out_if_asked(tokenizer: CharTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("x☃\x01𝔘😀\ud800", unknown="skip")) == "☃𝔘"


def test_a_lone_surrogate_is_an_unknown_character_like_others(tokenizer: CharTokenizer) -> None:
    with pytest.raises(ValueError, match=r"^The character '\\udc80' \(U\+DC80\) at position 1 is not among"):
        tokenizer.encode("☃\udc80")


def test_a_tokenizer_of_no_text_knows_nothing() -> None:
    empty = CharTokenizer.fit([])
    assert empty.vocab_size == 0 and empty.encode("") == [] and empty.encode("ab", "skip") == []
    with pytest.raises(ValueError, match="not among the 0"):
        empty.encode("a")


@pytest.mark.parametrize("ids", [[-1], [0, 10**6], [2**70], [-(2**70)]])
def test_an_id_out_of_range_is_refused(tokenizer: CharTokenizer, ids: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"^Token ids must lie in \[0, {tokenizer.vocab_size}\)\.$"):
        tokenizer.decode(ids)


def test_the_first_id_past_the_end_is_out_of_range(tokenizer: CharTokenizer) -> None:
    tokenizer.decode([tokenizer.vocab_size - 1])
    with pytest.raises(ValueError, match="Token ids must lie in"):
        tokenizer.decode([tokenizer.vocab_size])


def test_the_end_of_text_is_one_more_token_that_text_cannot_contain() -> None:
    plain, marked = CharTokenizer.fit(["<|endoftx>"]), CharTokenizer.fit(["<|endoftx>"], end_of_text=True)
    assert plain.end_of_text_id is None
    assert marked.end_of_text_id == plain.vocab_size == marked.vocab_size - 1
    assert marked.encode(END_OF_TEXT) == plain.encode(END_OF_TEXT)
    assert marked.end_of_text_id not in marked.encode(END_OF_TEXT)
    assert marked.decode([0, marked.end_of_text_id, 1]) == plain.decode([0, 1])


def test_a_byte_is_its_own_id() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("Aé☃") == [0x41, 0xC3, 0xA9, 0xE2, 0x98, 0x83]
    assert tokenizer.vocab_size == 257 and tokenizer.decode([256]) == "" and tokenizer.decode([0xE2]) == "\ufffd"
    assert tokenizer.encode(END_OF_TEXT) == list(END_OF_TEXT.encode())


@given(any_text)
def test_sizes_add_up_to_the_bytes_and_characters(text: str) -> None:
    for tokenizer in (CharTokenizer.fit([text], end_of_text=True), ByteTokenizer()):
        ids = [*tokenizer.encode(text), tokenizer.end_of_text_id]
        assert [table[ids].sum() for table in tokenizer.sizes] == [len(text.encode()), len(text)]


def test_half_a_surrogate_pair_is_no_character() -> None:
    with pytest.raises(ValueError, match=r"lone surrogate \(U\+D800\)"):
        CharTokenizer.fit(["a\ud800"])


@pytest.mark.parametrize("end_of_text", [False, True])
def test_a_saved_tokenizer_comes_back_equal(tmp_path: Path, end_of_text: bool) -> None:
    tokenizer = CharTokenizer.fit([TEXT, "\u2028\x85\"\\'"], end_of_text)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded == tokenizer and loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.end_of_text_id) == (tokenizer.vocab_size, tokenizer.end_of_text_id)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)


def test_equality_is_of_the_definition() -> None:
    abc, again, abd = CharTokenizer("abc"), CharTokenizer.fit(["cab"]), CharTokenizer("abd")
    assert abc == again and hash(abc) == hash(again)
    assert abc != abd and abc != CharTokenizer("abc", end_of_text=True) and abc != "abc"


def test_the_fingerprint_stays_the_same_from_version_to_version() -> None:
    """It names prepared corpora and decides whether a run fits its text: a change loses both."""
    assert CharTokenizer("abc☃", end_of_text=True).fingerprint == (
        "2147c059aa2d26d0db90899bff99307d639a867faf971e1cf6eeabf92c95ad5e"
    )


@pytest.mark.parametrize("characters", ["ba", "aab", ["ab", "c"], ["", "a"]])
def test_characters_that_are_no_sorted_set_are_refused(characters: Any) -> None:
    with pytest.raises(ValueError, match="distinct single characters in sorted order"):
        CharTokenizer(characters)


GOOD = {"kind": "char", "version": 1, "characters": "abc", "special_tokens": {}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        json.dumps(GOOD)[:-9],
        b"\xff\xfe\x00",
        json.dumps([GOOD]),
        json.dumps(GOOD | {"kind": "telepathy"}),
        json.dumps(GOOD | {"kind": ["char"]}),
        json.dumps(GOOD | {"version": 2}),
        json.dumps(GOOD | {"characters": "cba"}),
        json.dumps(GOOD | {"characters": ["a", "b"]}),
        json.dumps(GOOD | {"special_tokens": None}),
        json.dumps({"kind": "char"}),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"tokenizer\.json (is damaged|does not hold a tokenizer)"):
        Tokenizer.load(path)


def test_the_file_of_these_cases_would_load(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(GOOD))
    assert Tokenizer.load(tmp_path / "tokenizer.json") == CharTokenizer("abc")
