"""Characters to ids and back, exactly, or a sentence that says where not."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.data.tokenizers.base import (
    END_OF_TEXT,
    ByteTokenizer,
    CharTokenizer,
    PromptWarning,
    Tokenizer,
    UnknownText,
)

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
    [("𝔘 x", "'x' (U+0078)", 2), ("\x01", "'\\x01' (U+0001)", 0), ("☃☃😀 x", "'😀' (U+1F600, grinning face)", 2)],
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


LETTERS = 'abcdefghijklmnopqrstuvwxyz, .?"\n'


@pytest.mark.parametrize(
    ("known", "text", "advice"),
    [
        (LETTERS, "“hi”", """The vocabulary has '"' (U+0022): write '"hi"', or drop"""),
        (LETTERS, "ﬁne", "The vocabulary has 'fi' (U+0066 U+0069): write fine, or drop"),
        (LETTERS, "ｈｉ", "The vocabulary has 'h' (U+0068): write hi, or drop"),
        (LETTERS, "a\u00a0b", "The vocabulary has ' ' (U+0020): write 'a b', or drop"),
        (LETTERS, "a\u2028b", "The vocabulary has '\\n' (U+000A): write $'a\\012b', or drop"),
        (LETTERS, "с", "The vocabulary has 'c' (U+0063): write c, or drop"),  # Cyrillic
        (LETTERS, "Z", "The vocabulary has 'z' (U+007A): write z, or drop"),
        (LETTERS, "a\u200bb", "It is invisible: remove it, or drop"),
        (LETTERS, "a" * 300 + "…", "The vocabulary has '...' (U+002E U+002E U+002E): use that, or drop"),
        (LETTERS, "😀", "Remove it, or drop"),
        (
            "“Ja”",
            '"',
            "has '“' (U+201C, left double quotation mark) or '”' (U+201D, right double quotation mark): write",
        ),
        ("с", "c", "The vocabulary has 'с' (U+0441, cyrillic small letter es): write"),
        (
            "éx",
            "e\u0301",
            "in the Unicode form NFC, 'e\u0301' as 1 character (U+00E9) instead of 2 characters (U+0065 U",
        ),
        (
            "e\u0301",
            "é",
            "in the Unicode form NFD, 'é' as 2 characters (U+0065 U+0301) instead of 1 character (U+00E9)",
        ),
    ],
)
def test_what_looks_like_an_unknown_character_and_is_known_is_named(known: str, text: str, advice: str) -> None:
    with pytest.raises(UnknownText) as refused:
        CharTokenizer.fit([known]).encode(text)
    assert advice in str(refused.value)


@pytest.mark.parametrize(
    ("known", "prompt", "fitted"),
    [
        ("Café x", "Cafe\u0301", "Café"),
        ("Cafe\u0301 x", "Café", "Cafe\u0301"),
        ("한국", "한국", "한국"),
        ("a\nb", "a\r\nb", "a\nb"),
        ("aé\n", "a\r\ne\u0301", "a\né"),
        ("a\r\nb", "a\r\nb", "a\r\nb"),
        ("é e\u0301", "e\u0301 é", "e\u0301 é"),  # a text with both
        ("éx", "e\u0301 e\u0302", "e\u0301 e\u0302"),  # converting would not make it known
        ("abc", "ﬁ", "ﬁ"),  # not the same text
    ],
)
def test_a_prompt_is_converted_to_the_unicode_form_of_the_text(known: str, prompt: str, fitted: str) -> None:
    tokenizer = CharTokenizer.fit([known])
    found, said = tokenizer.fit_prompt(prompt)
    assert found == fitted and bool(said) == (fitted != prompt)
    assert ByteTokenizer().fit_prompt(prompt) == (prompt, "")  # it cannot know


def test_a_converted_prompt_is_said() -> None:
    tokenizer = CharTokenizer.fit(["Café"])
    with pytest.warns(PromptWarning, match=r"to the Unicode form NFC, .* 1 character \(U\+00E9\) instead of 2"):
        assert tokenizer.encode_prompt("Cafe\u0301") == tokenizer.encode("Café")


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


@given(st.lists(any_text, min_size=1), st.booleans())
def test_documents_encoded_together_get_the_ids_of_each_alone(texts: list[str], is_byte: bool) -> None:
    tokenizer = ByteTokenizer() if is_byte else CharTokenizer.fit([TEXT])
    alone = [tokenizer.encode(text, "skip") for text in texts]
    ids, lengths = tokenizer.encode_batch(texts, "skip")
    assert (ids.tolist(), lengths) == ([*itertools.chain(*alone)], list(map(len, alone)))
