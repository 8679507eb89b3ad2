"""Our answers to the exercises of chapter 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise


def make_tokenizer(text: str) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    characters = sorted(set(text))
    id_of = {character: i for i, character in enumerate(characters)}

    def encode(text: str) -> list[int]:
        return [id_of[character] for character in text]

    def decode(ids: list[int]) -> str:
        return "".join(characters[i] for i in ids)

    return encode, decode


def count_pairs(ids: list[int]) -> dict[tuple[int, int], int]:
    return Counter(pairwise(ids))


def merge(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    merged, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged
