"""Guesses from what was seen before."""

from __future__ import annotations

from groundling.inference.ngram_drafter import NgramDrafter

TEXT = [int(c) for c in "31415926535897932384626433832795028841971693993751058209749445923078164062862089986280348253"]


def test_what_followed_is_guessed_again() -> None:
    drafts = NgramDrafter()
    drafts.show(TEXT)
    assert drafts.draft([0, *TEXT[20:33]], 5) == TEXT[33:38]
    assert drafts.draft(TEXT[:3], 4) == TEXT[3:7]


def test_nothing_is_guessed_after_what_was_never_seen() -> None:
    drafts = NgramDrafter()
    assert drafts.draft(TEXT, 4) == []
    drafts.show(TEXT)
    assert drafts.draft([7, 7, 7], 4) == drafts.draft([3], 4) == []


def test_a_text_may_be_shown_at_once_or_token_by_token() -> None:
    at_once, one_by_one = NgramDrafter(), NgramDrafter()
    at_once.show(TEXT)
    for n in range(1, len(TEXT) + 1):
        one_by_one.add(TEXT[:n])
    for n in range(1, len(TEXT)):
        assert at_once.draft(TEXT[:n], 4) == one_by_one.draft(TEXT[:n], 4)


def test_the_newest_counts() -> None:
    drafts = NgramDrafter()
    drafts.show([1, 2, 3, 4, 1, 2, 3, 5])
    assert drafts.draft([9, 1, 2, 3], 1) == [5]
    assert drafts.draft([9, 4, 1, 2, 3], 1) == [5]
