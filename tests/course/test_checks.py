"""Each check of an exercise: the stub fails, our answer passes, and a wrong answer fails with the sentence for it."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from wrong import WRONG

from groundling.course.chapter import chapters
from groundling.course.checks import Wrong, check_of, solution_of
from groundling.course.judge import judge

for number in chapters():
    importlib.import_module(f"wrong.chapter_{number}")

STUBS = {
    block.name: block.text for chapter in chapters().values() for block in chapter.blocks if block.kind == "exercise"
}


@pytest.mark.parametrize("name", STUBS)
def test_the_stub_fails(name: str) -> None:
    assert judge(STUBS[name], "answers.py", name) == "You have not written it yet."


@pytest.mark.parametrize("name", STUBS)
def test_the_reference_passes(name: str) -> None:
    check_of(name)(solution_of(name))


@pytest.mark.parametrize(("name", "sentence", "answer"), WRONG, ids=[f"{n}-{a.__name__}" for n, _, a in WRONG])
def test_a_wrong_answer_fails_with_the_sentence_for_it(name: str, sentence: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(Wrong) as caught:
        check_of(name)(answer)
    assert sentence in str(caught.value)


def test_each_exercise_has_two_wrong_answers_or_more() -> None:
    given = Counter(name for name, _, _ in WRONG)
    assert not given.keys() - STUBS.keys()
    assert not [name for name in STUBS if given[name] < 2]
