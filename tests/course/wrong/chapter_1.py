"""Wrong answers to the exercises of chapter 1."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from wrong import wrong


def _tokenizer(characters: list[str], first: int = 0) -> Any:
    id_of = {character: i for i, character in enumerate(characters, first)}
    return (lambda text: [id_of[c] for c in text]), (lambda ids: "".join(characters[i - first] for i in ids))


@wrong("make_tokenizer", "order of a set, or of their first appearance")
def in_order_of_appearance(text: str) -> Any:
    return _tokenizer(list(dict.fromkeys(text)))


@wrong("make_tokenizer", "need the ids 0 to")
def ids_from_one(text: str) -> Any:
    return _tokenizer(sorted(set(text)), first=1)


@wrong("make_tokenizer", "the character is lost without a word")
def unknown_becomes_the_first(text: str) -> Any:
    characters = sorted(set(text))
    id_of = {character: i for i, character in enumerate(characters)}
    return (lambda text: [id_of.get(c, 0) for c in text]), (lambda ids: "".join(characters[i] for i in ids))


@wrong("make_tokenizer", "the character is lost without a word")
def unknown_is_left_out(text: str) -> Any:
    encode, decode = _tokenizer(sorted(set(text)))
    return (lambda new: encode(c for c in new if c in text)), decode


@wrong("make_tokenizer", "should return two functions")
def returns_the_characters(text: str) -> Any:
    return sorted(set(text))


@wrong("count_pairs", "Each neighbour counts")
def every_second_pair(ids: list[int]) -> Any:
    return Counter(zip(ids[::2], ids[1::2], strict=False))


@wrong("count_pairs", "The last id has no neighbour after it")
def around_the_end(ids: list[int]) -> Any:
    return Counter((ids[i - 1], ids[i]) for i in range(len(ids)))


@wrong("count_pairs", "different pairs")
def without_order(ids: list[int]) -> Any:
    return Counter((min(pair), max(pair)) for pair in pairwise(ids))


@wrong("count_pairs", "a dict of pairs")
def only_their_number(ids: list[int]) -> Any:
    return len(set(pairwise(ids)))


@wrong("merge", "an id belongs to one pair only")
def overlapping(ids: list[int], pair: tuple[int, int], new_id: int) -> Any:
    found = [tuple(ids[i : i + 2]) == pair for i in range(len(ids))]
    return [new_id if found[i] else ids[i] for i in range(len(ids)) if found[i] or not (i and found[i - 1])]


@wrong("merge", "The last id is lost")
def without_the_last(ids: list[int], pair: tuple[int, int], new_id: int) -> Any:
    merged, i = [], 0
    while i < len(ids) - 1:
        found = (ids[i], ids[i + 1]) == pair
        merged.append(new_id if found else ids[i])
        i += 2 if found else 1
    return merged


@wrong("merge", "leave the one that it was given as it was")
def in_place(ids: list[int], pair: tuple[int, int], new_id: int) -> Any:
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            ids[i : i + 2] = [new_id]
        i += 1
    return ids


@wrong("merge", "should be 9 9 2")
def only_the_first(ids: list[int], pair: tuple[int, int], new_id: int) -> Any:
    for i in range(len(ids) - 1):
        if tuple(ids[i : i + 2]) == pair:
            return [*ids[:i], new_id, *ids[i + 2 :]]
    return ids
