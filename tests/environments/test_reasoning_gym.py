"""reasoning-gym's tasks, as far as the package is installed."""

from __future__ import annotations

import sys

import pytest

from groundling.environments import PARTS, find_environment


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r'reasoning-gym:chain_sum needs \w+: pip install "groundling\[tasks\]"\.$'):
        find_environment("reasoning-gym:chain_sum")


@pytest.mark.parametrize("name", ["spell_backward", "chain_sum", "countdown", "gcd", "letter_counting", "products"])
def test_items_parts_and_rewards(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    environment, again = (find_environment(f"reasoning-gym:{name}") for _ in "ab")
    questions = {}
    n = 2 if name == "countdown" else 20  # it is slow
    for level in (1,) if name == "countdown" else environment.levels:
        for part in PARTS:
            items = [environment.item(i, part, level) for i in range(n)]
            assert items == [again.item(i, part, level) for i in range(n)]
            questions[part] = questions.get(part, set()) | {item.prompt for item in items}
            for item in items:
                assert environment.reward(item, f"#{item.answer}") == 1
                assert environment.reward(item, f"#{item.answer} ") == environment.reward(item, item.answer) == 0
                assert environment.reward(item, f"#{item.answer}, or so") == 0
                assert environment.messages(item, "answer")[-1].content == f"#{item.answer}"
    assert not questions["train"] & (questions["validation"] | questions["test"])
    with pytest.raises(ValueError, match=r"has no working\. Use --style answer"):
        environment.messages(environment.item(0))


def test_answers_in_countdown_are_checked_by_our_parser() -> None:
    pytest.importorskip("reasoning_gym")
    environment = find_environment("reasoning-gym:countdown")
    item = environment.item(0)
    assert environment.reward(item, f"#({item.answer})") == 1 and environment.reward(item, "#9**9**9") == 0


def test_an_unknown_name_is_refused() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=r"no dataset 'chain_sun' \(did you mean 'chain_sum'"):
        find_environment("reasoning-gym:chain_sun")
    with pytest.raises(ValueError, match="no dataset 'composite'"):
        find_environment("reasoning-gym:composite")
