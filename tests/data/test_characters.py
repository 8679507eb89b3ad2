"""Accidents in a text: counted right, whatever the pieces, and gone in a clean copy."""

from __future__ import annotations

import gzip
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.data import characters
from groundling.data.characters import OddCharacters, clean, clean_command, odd_kind, odd_notice
from groundling.data.sources import find_source


def counted(*chunks: str) -> dict[str, int]:
    odd = OddCharacters()
    for chunk in chunks:
        odd.add(chunk)
    return odd.counts()


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("Plain text.\nÄ \u200d\n", {}),
        ("a\ufeffb\ufeff", {"byte-order mark inside": 2}),
        ("\ufffd", {"replacement character": 1}),
        ("\0\x1b\f", {"control character": 3}),
        ("a\u00adb\u202e", {"invisible character": 2}),
        ("\ue000", {"unassigned or private character": 1}),
        ("a\r\nb\nc\nd\r", {"mixed line ends": 2}),
        ("a\r\nb\r\n", {}),
        ("é é e\u0301", {"letters in two forms": 1}),
        ("é e\u0301 e\u0301 a\u0302\u0301", {"letters in two forms": 1}),
        ("e\u0301 e\u0301", {}),
        (unicodedata.normalize("NFD", "한국어") + "한", {"letters in two forms": 1}),
        ("क़", {}),  # Unicode never joins these two
    ],
)
def test_accidents_are_counted(text: str, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted(text) == counts
    monkeypatch.setattr(characters, "_HELD", 2)
    assert counted(*text) == counts


@given(st.text(st.sampled_from("ae\u0301\u0302é\r\n\ufeff한\u1112\u1161\u11ab\0😀"), max_size=40), st.integers(0, 40))
def test_the_pieces_do_not_matter(text: str, cut: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(characters, "_HELD", 3)
        assert counted(text[:cut], text[cut:]) == counted(*text)
    assert counted(text[:cut], text[cut:]) == counted(text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_clean_text_has_no_accidents_that_can_be_removed(text: str) -> None:
    cleaned = clean(text)
    assert cleaned == clean(cleaned) and unicodedata.is_normalized("NFC", cleaned)
    assert counted(cleaned).keys() <= {
        "replacement character", "invisible character", "unassigned or private character", "letters in two forms",
    }  # fmt: skip
    assert len(cleaned) == len(unicodedata.normalize("NFC", cleaned))


def test_the_notice_counts_what_harms_and_its_commands_work(write: Callable[..., Path]) -> None:
    text = "Caf\u00e9, e\u0301\r\n\ufeffa\x1b\ufffd\nb\n"
    path = write("my book.txt", text)
    notice = odd_notice(counted(text), [str(path)], str(path))
    assert notice.startswith(
        "The model will learn some probable accidents: 1 U+FFFD in place of damaged bytes, 1 byte-order mark(s) inside "
        "(U+FEFF, from joined files), 1 control character(s), 1 letter(s) in another Unicode form than the rest (NFC "
        "and NFD), 1 line end(s) unlike the rest. `groundling inspect '"
    )
    command = clean_command(path)
    assert f"`{command}` writes a clean copy." in notice
    run = subprocess.run(
        command.replace("python", sys.executable, 1), shell=True, capture_output=True, encoding="utf-8", check=True
    )
    assert Path(run.stdout.strip()).read_bytes().decode() == "Café, é\na\ufffd\nb\n"
    assert odd_notice(counted("a\u00ad"), [str(path)], str(path)) == odd_notice({}, []) == ""
    assert "clean copy" not in odd_notice({"replacement character": 1}, [str(path)], str(path))
    with_field = odd_notice({"control character": 2}, ["a.jsonl", "--field", "body"])
    assert with_field.endswith("`groundling inspect a.jsonl --field body` shows where.")


def test_only_a_plain_file_can_be_cleaned(write: Callable[..., Path]) -> None:
    write("b.jsonl", '{"text": "x"}\n')
    write("c.txt.gz", gzip.compress(b"x"))
    assert find_source(write("a.txt", "x")).plain_path == str(Path("a.txt").resolve())
    for inputs in (["a.txt", "b.jsonl"], "b.jsonl", "c.txt.gz", ".", "python-docs"):
        assert find_source(inputs).plain_path is None


def test_joiners_that_languages_need_are_not_odd() -> None:
    assert [odd_kind(c) for c in "\u200c\u200d\t\n\r é"] == [None] * 7
