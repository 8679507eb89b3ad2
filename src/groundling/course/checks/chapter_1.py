"""The checks of chapter 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from groundling.course.checks import expect

_VERSE = "To be, or not to be: that is the question.\n"


def make_tokenizer(answer: Callable[..., Any]) -> None:
    made = answer(_VERSE)
    two = isinstance(made, tuple | list) and len(made) == 2 and all(map(callable, made))
    expect(two, "make_tokenizer should return two functions: `return encode, decode`.")
    encode, decode = made
    ids = _whole(encode(_VERSE), "encode")
    kinds = sorted(set(_VERSE))
    expect(set(ids) == set(range(len(kinds))), f"{len(kinds)} different characters need the ids 0 to {len(kinds) - 1}.")
    expect(
        _whole(encode("".join(kinds)), "encode") == list(range(len(kinds))),
        "Ids should follow the sorted characters. In the order of a set, or of their first appearance, the same ids "
        "mean another text tomorrow.",
    )
    expect(decode(ids) == _VERSE, f"decode(encode(text)) should be the text again, but it is {decode(ids)!r}.")
    everything = "".join(map(chr, [*range(0, 0xD800, 7), *range(0xE000, 0x110000, 997)]))
    encode_all, decode_all = answer(everything)
    expect(decode_all(encode_all(everything)) == everything, "The round trip should hold for all of Unicode.")
    expect(decode(encode("be")) == "be", "A second call of make_tokenizer changed the first tokenizer.")
    try:
        ids = list(encode("to ☃ be"))
    except Exception:  # as it should: which error is the learner's choice
        return
    expect(
        False,
        f"☃ is not in the text, but encode gives {ids}, which decodes to {decode(ids)!r}: the character is lost "
        "without a word. Raise an error instead.",
    )


def count_pairs(answer: Callable[..., Any]) -> None:
    from groundling.course.solutions.chapter_1 import count_pairs as ours

    expect(isinstance(answer([0, 1]), dict), "count_pairs should return a dict of pairs and their counts.")
    found = dict(answer([0, 1, 2]))
    expect((1, 2) in found, "Each neighbour counts, so 0 1 2 has the pairs (0, 1) and (1, 2).")
    expect((2, 0) not in found, "The last id has no neighbour after it, but the pair (2, 0) of 0 1 2 is counted.")
    expect((2, 0) in dict(answer([0, 2, 0])), "(0, 2) and (2, 0) are different pairs: keep their order.")
    expect(dict(answer([5, 5, 5])) == {(5, 5): 2}, "5 5 5 has the pair (5, 5) twice.")
    expect(not dict(answer([])) and not dict(answer([3])), "Fewer than two ids have no pairs, and raise no error.")
    ids = list((_VERSE * 3).encode())
    expect(dict(answer(ids)) == dict(ours(ids)), "The counts of a longer text are wrong.")


def merge(answer: Callable[..., Any]) -> None:
    ids = [0, 1, 0, 1, 2]
    merged = _whole(answer(ids, (0, 1), 9), "merge")
    expect(ids == [0, 1, 0, 1, 2], "merge should return a new list, and leave the one that it was given as it was.")
    expect(9 in merged, f"merge(0 1 0 1 2, (0, 1), 9) should have the new id 9, but it is {merged}.")
    expect(_whole(answer([0, 3], (0, 1), 9), "merge")[-1:] == [3], "The last id is lost: merge(0 3, (0, 1), 9) is 0 3.")
    expect(
        _whole(answer([2, 2, 2], (2, 2), 9), "merge") == [9, 2],
        f"2 2 2 with the pair (2, 2) should become 9 2, not {answer([2, 2, 2], (2, 2), 9)}: from the left, and an id "
        "belongs to one pair only.",
    )
    expect(merged == [9, 9, 2], f"merge(0 1 0 1 2, (0, 1), 9) should be 9 9 2, not {merged}.")
    expect(_whole(answer([1, 0], (0, 1), 9), "merge") == [1, 0], "(1, 0) is not the pair (0, 1): the order matters.")
    ends = _whole(answer([7, 0, 1], (0, 1), 9), "merge")
    expect(ends == [7, 9], f"merge(7 0 1, (0, 1), 9) should be 7 9, not {ends}: the pair may be at the end.")
    expect(not list(answer([], (0, 1), 9)), "No ids stay no ids.")
    _as_groundling(answer)


def _as_groundling(answer: Callable[..., Any]) -> None:
    """Merges of groundling's own tokenizer, applied by the learner, must give its ids."""
    from groundling.data.tokenizers.bpe import BpeTokenizer

    words = ["banana", "bananabandana", "mississippi"]
    tokenizer = BpeTokenizer.fit([" ".join(words * 3)], 300)
    id_of = {token: i for i, token in enumerate(tokenizer.vocabulary)}
    for word in words:
        ids = [id_of[letter] for letter in word]
        for first, second in tokenizer.merges:
            ids = _whole(answer(ids, (id_of[first], id_of[second]), id_of[first + second]), "merge")
        expect(ids == tokenizer.encode(word), f"{word!r} gets other ids than from groundling's own tokenizer.")


def _whole(ids: Iterable[Any] | None, name: str) -> list[int]:
    """What the learner's function returned, as a list of ints."""
    expect(ids is not None, f"{name} returns nothing. Is the `return` missing?")
    assert ids is not None
    return [int(i) for i in ids]
