"""Every task: items that are the same for all, in parts that share nothing, and a reward that cannot be talked into."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from groundling.data.conversations import Message, ToolCall
from groundling.environments import ENVIRONMENTS, PARTS, Environment, Item, find_environment

EACH = [(name, level) for name, environment in ENVIRONMENTS.items() for level in environment.levels]
each = pytest.mark.parametrize(("name", "level"), EACH, ids=str)
CHANCES = {
    "reverse": (0.11, 0.008, 0.0003), "count": (0.41, 0.32, 0.28), "swaps": (1 / 3, 1 / 12, 1 / 60),
    "sums": (0.008, 0.004, 0.005, 0.005), "multiply": (0.004, 0.001, 0, 0), "countdown": (0.28, 0.08, 0.02, 0.02),
}  # fmt: skip


def reply(item: Item) -> str:
    return f"{item.working};#{item.answer}"


def example(name: str, prompt: str, working: str, answer: str, **data: object) -> tuple[Environment, Item]:
    return ENVIRONMENTS[name], Item(0, "train", prompt, working, answer, {"level": 1, **data})


@pytest.mark.parametrize(
    ("name", "index", "prompt", "expected"),
    [
        ("reverse", 0, "reverse: etuja", "1e2t3u4j5a;5a4j3u2t1e;#ajute"),
        ("count", 0, "v in savabevese=", "s0a0v1a1b1e1v2e2s2e2;#2"),
        ("swaps", 0, "gcfe 12 23 12 24 34=", "cgfe;cfge;fcge;fegc;fecg;#fecg"),
        ("sums", 0, "91-11+62=", "91-11=80;80+62=142;#142"),
        ("multiply", 0, "4316*8=", "6*8+0=48;1*8+4=12;3*8+1=25;4*8+2=34;#34528"),
        ("countdown", 1, "3 15 18 -> 6", "3*18=54,54-15=39;18-15=3,3+3=6;#18-15+3"),
    ],
)
def test_items_never_change(name: str, index: int, prompt: str, expected: str) -> None:
    """If this fails because items were meant to change, raise the environment's version."""
    item = ENVIRONMENTS[name].item(index)
    assert (ENVIRONMENTS[name].version, item.prompt, reply(item)) == (1, prompt, expected)


def test_items_are_the_same_in_another_process_and_order() -> None:
    code = "from groundling.environments import find_environment as f; print(f('countdown').item(20, 'test').prompt)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    fresh = type(ENVIRONMENTS["countdown"])()
    one_by_one = [fresh.item(i, "test") for i in range(21)]
    assert done.stdout.strip() == one_by_one[20].prompt == ENVIRONMENTS["countdown"].item(20, "test").prompt


@each
def test_the_right_answer_earns_1_in_every_style(name: str, level: int) -> None:
    environment = ENVIRONMENTS[name]
    for part in PARTS:
        for item in (environment.item(i, part, level) for i in range(60)):
            for style in ("working", "answer", "shuffled", "answer-first", *(["tool"] if "calls" in item.data else [])):
                *_, last = environment.messages(item, style)
                assert environment.score(item, last.content) == {"reward": 1, "answered": 1, "well_formed": 1}


@each
def test_working_and_answer_are_true(name: str, level: int) -> None:
    """Computed here in another way."""
    for item in (ENVIRONMENTS[name].item(i, "train", level) for i in range(200)):
        if name in ("sums", "multiply"):
            assert eval(item.prompt[:-1]) == int(item.answer)
            assert all(eval(step.replace("=", "==")) for step in item.working.split(";"))
        elif name == "countdown":
            numbers, target = item.prompt.split(" -> ")
            assert eval(item.answer) == int(target)
            for attempt in item.working.split(";"):
                assert all(eval(step.replace("=", "==")) for step in attempt.split(","))
            values = [eval(call) for call in item.data["calls"]]
            assert values.index(int(target)) == len(values) - 1
            assert [int(attempt.rpartition("=")[2]) for attempt in item.working.split(";")] == values
            assert sorted(item.data["numbers"]) == sorted(map(int, numbers.split()))
        elif name == "reverse":
            assert item.prompt == f"reverse: {item.answer[::-1]}"
        elif name == "count":
            letter, _, word = item.prompt[:-1].split()
            assert word.count(letter) == int(item.answer) and item.working[1::2][-1] == item.answer
        else:
            letters, *swaps = item.prompt[:-1].split()
            for a, b in swaps:
                letters = letters.translate({ord(letters[int(x) - 1]): letters[int(y) - 1] for x, y in (a + b, b + a)})
            assert letters == item.answer == item.working.split(";")[-1]


@each
def test_the_longest_is_an_upper_bound_and_near(name: str, level: int) -> None:
    environment = ENVIRONMENTS[name]
    items = [environment.item(i, "train", level) for i in range(1_500)]
    prompt, text = environment.longest(level)
    assert prompt - 1 <= max(len(item.prompt) for item in items) <= prompt
    assert text * 0.85 <= max(len(reply(item)) for item in items) <= text
    assert level != environment.default_level or prompt + text <= (60 if name in ("reverse", "sums") else 90)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_parts_are_disjoint_across_levels_and_held_out_items_differ(name: str) -> None:
    environment = ENVIRONMENTS[name]
    prompts = {
        part: {environment.item(i, part, level).prompt for level in environment.levels for i in range(400)}
        for part in PARTS
    }
    assert not prompts["train"] & prompts["validation"] and not prompts["test"] & prompts["validation"]
    assert not prompts["train"] & prompts["test"]
    for part in PARTS[1:]:
        assert len({environment.item(i, part).prompt for i in range(1_000)}) == 1_000
    assert len({environment.item(i).prompt for i in range(1_000)}) > 950


def test_mirrored_questions_are_in_the_same_part() -> None:
    test = {" ".join(sorted(ENVIRONMENTS["sums"].item(i, "test", 1).prompt[:-1].split("+"))) for i in range(500)}
    train = {" ".join(sorted(ENVIRONMENTS["sums"].item(i, "train", 1).prompt[:-1].split("+"))) for i in range(3_000)}
    assert len(test) == 500 and not test & train


def test_a_part_that_is_used_up_repeats() -> None:
    environment = type(ENVIRONMENTS["multiply"])()
    prompts = [environment.item(i, "test", 1).prompt for i in range(150)]  # 90 × 8 products, a tenth of them
    assert 65 <= len(set(prompts)) <= 90 and len(set(prompts[:65])) == 65
    assert environment.item(10_000, "test", 1).prompt in set(prompts)


@each
def test_chance(name: str, level: int) -> None:
    assert ENVIRONMENTS[name].chance(level) == pytest.approx(CHANCES[name][level - 1], rel=0.3, abs=0.003)


def test_a_countdown_answer_may_be_any_expression_that_is_right() -> None:
    environment, item = example("countdown", "3 5 7 -> 26", "", "3*7+5", numbers=[3, 5, 7], target=26)
    for answer in ("3*7+5", "5+7*3", "(3*7)+5", "5+3*7"):
        assert environment.reward(item, f"3*5=15,15+7=22;#{answer}") == 1
    for answer in ("26", "3*7+5+0", "7+19", "3+5+7", "-5+31", "5-(-3*7)", "3*7+05", "3 * 7 + 5", "21+5", "3*7+5=26"):
        assert environment.reward(item, f"#{answer}") == 0
    found = environment.score(item, "#3+5+7")
    assert found == {"reward": 0, "answered": 1, "well_formed": 1}


@pytest.mark.parametrize(
    "text",
    [
        "", "56", "#", "# 56", "#56 ", "#56\n", "#56.", "#056", "#+56", "#５６", "#٥٦", "#56;", "#57", "#56#", "#56#57",
        "#5 6", "#56.0", "#0x38", "#56 is right", "#9**9**9", "#" + "(" * 10**6, "#" + "9" * 10**7, "#56" * 10**6 + "x",
        "#" * 10**7, "x" * 10**7, "#|56", "#56\0", "\ud800#",
    ],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_nothing_else_earns_a_reward(text: str) -> None:
    environment, item = example("sums", "47+38-29=", "47+38=85;85-29=56", "56")
    countdown, other = example("countdown", "56 -> 56", "", "56", numbers=[56], target=56)
    start = time.perf_counter()
    assert environment.reward(item, text) == countdown.reward(other, text) == 0
    assert time.perf_counter() - start < 0.5
    assert environment.reward(item, text + "#56") == 1  # only what follows the last # counts


def test_the_figures_of_a_reply() -> None:
    environment, item = example("sums", "47+38-29=", "47+38=85;85-29=56", "56")
    assert environment.score(item, "47+38=85") == {"reward": 0, "answered": 0, "well_formed": 0}
    assert environment.score(item, "#many") == {"reward": 0, "answered": 1, "well_formed": 0}
    assert environment.score(item, "#57") == {"reward": 0, "answered": 1, "well_formed": 1}


def test_the_styles() -> None:
    environment, item = example("sums", "47+38-29=", "47+38=85;85-29=56", "56", calls=("47+38", "85-29"))
    user = Message("user", "47+38-29=")
    assert environment.messages(item) == (user, Message("assistant", "47+38=85;85-29=56;#56"))
    assert environment.messages(item, "answer") == (user, Message("assistant", "#56"))
    assert environment.messages(item, "answer-first") == (user, Message("assistant", "#56|47+38=85;85-29=56"))
    assert environment.messages(item, "tool") == (
        user,
        Message("assistant", calls=(ToolCall("calculator", '{"expression": "47+38"}'),)),
        Message("tool", "85"),
        Message("assistant", calls=(ToolCall("calculator", '{"expression": "85-29"}'),)),
        Message("tool", "56"),
        Message("assistant", "#56"),
    )
    other = environment.item(1, "train", 1)
    assert environment.messages(item, "shuffled") == (user, Message("assistant", f"{other.working};#56"))


def test_what_does_not_exist_is_refused() -> None:
    reverse = ENVIRONMENTS["reverse"]
    with pytest.raises(ValueError, match=r"no environment 'sum' \(did you mean 'sums'"):
        find_environment("sum")
    with pytest.raises(ValueError, match="--level must be at most 3, not 4"):
        reverse.item(0, "train", 4)
    with pytest.raises(ValueError, match="part must be one of train, validation, test, not 'dev'"):
        reverse.item(0, "dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="index must be at least 0, not -1"):
        reverse.item(-1)
    with pytest.raises(ValueError, match="--style must be one of working"):
        reverse.messages(reverse.item(0), "long")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--style tool: reverse needs no calculator"):
        reverse.messages(reverse.item(0), "tool")
