"""How the files of a text changed, in words."""

from __future__ import annotations

import pytest

from groundling.data.fingerprint import difference


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("a1 b2", "a1 b2", ""),
        ("a1 b2", "a1 b2 c3", "1 file was added (c)"),
        ("a1 b2", "b9", "1 file was removed (a), 1 file was edited (b)"),
        ("a1 b2", "b2 c1", "1 file was renamed (c)"),
        ("a1", "b1 c1", "1 file was added (c), 1 file was renamed (b)"),
        ("a1 b1", "c1", "1 file was removed (b), 1 file was renamed (c)"),
    ],
)
def test_the_difference_counts_each_file_once(before: str, now: str, said: str) -> None:
    was, files = ([{"name": name[0], "sha256": name[1]} for name in names.split()] for names in (before, now))
    assert difference(was, files) == said
