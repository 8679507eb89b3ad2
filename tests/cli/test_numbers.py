"""Numbers on the command line: every option that takes one has limits, and names itself where they are crossed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from options import options

import groundling
from groundling.config import Sampling, flag, setting_fields
from groundling.experiments.compare_tokenizers import compare_tokenizers
from groundling.experiments.selftest import selftest
from groundling.interchange.export import export

# What a command needs besides the option. The run and the files exist; `export` and `selftest` must refuse before that.
WORDS = {
    "train": "prose.txt", "resume": "first", "sample": "first", "chat": "first", "eval": "first", "serve": "first",
    "inspect": "prose.txt", "import": "first", "export": "first --to gguf", "selftest": "", "studio": "",
    "plan": "prose.txt", "prepare": "prose.txt", "tasks": "sums",
    "sft": "first prose.txt", "dpo": "first prose.txt", "reward": "first prose.txt",
    "grpo": "first --task sums", "distill": "first first prose.txt",
    "course submit": "first --author Ada",
    "tokenizer train": "prose.txt --out t.json", "tokenizer compare": "prose.txt",
}  # fmt: skip
OUTSIDE = {"float": ["nan", "-1e9", "inf"], "int": ["-5", "9223372036854775808"]}
NO_NUMBER = {"float": "many", "int": "1.5"}


def kind(hint: Any) -> str | None:
    """`int` or `float` if the option takes such a number, or several."""
    kinds = {hint, *get_args(hint), *(each for inner in get_args(hint) for each in get_args(inner))}
    return next((number.__name__ for number in (int, float) if number in kinds), None)


OPTIONS = [
    (name, argument.names[0], number)
    for name, argument in options()
    if (number := kind(argument.hint)) is not None and argument.names[0].startswith("--")
]


def test_they_are_found() -> None:
    assert len(OPTIONS) > 60
    assert {("eval", "--max-tokens", "int"), ("tokenizer compare", "--vocab-sizes", "int")} <= set(OPTIONS)
    assert {name for name, *_ in OPTIONS} == set(WORDS)


@pytest.mark.parametrize(("command", "option", "number"), OPTIONS, ids=str)
@pytest.mark.usefixtures("first", "text_file")
def test_every_number_has_limits(command: str, option: str, number: str, cli: Any) -> None:
    """A new option without limits fails here: it reads the text, trains or listens instead of refusing.

    A setting has the same limits in each command: only the first is given all kinds of numbers, the others one."""
    before = [*command.split(), *WORDS[command].split()]
    refusals = dict.fromkeys(OUTSIDE[number], f"{option} must be ")
    refusals[NO_NUMBER[number]] = f"Invalid value for {option}: unable to convert"
    first = next(other for other, its_option, _ in OPTIONS if its_option == option)
    if option in map(flag, setting_fields()) and command != first:
        refusals = {OUTSIDE[number][0]: f"{option} must be "}
    for value, words in refusals.items():
        done = cli(*before, f"{option}={value}")
        assert done.status in (1, 2), value
        assert done.err.startswith("groundling: " + words), (value, done.err)
        assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("word", ["many", "", "1e3", "1e400", "1e400.0", "nan", "9" * 5000, "0.5", "--json"])
def test_what_is_no_whole_number_is_refused(word: str, first: groundling.Run, cli: Any) -> None:
    done = cli("eval", "first", f"--max-tokens={word}")
    assert done.status == 2 and done.err.startswith("groundling: Invalid value for --max-tokens")
    assert json.loads(cli("eval", "first", "--max-tokens=64.0", "--json").out)["tokens"] == 64


def test_the_seed_after_the_largest_is_0(first: groundling.Run, cli: Any) -> None:
    words = ("sample", "first", "--max-new-tokens", "5", "--json")
    several = json.loads(cli(*words, "--seed", 2**63 - 1, "--num-samples", 3).out)
    assert [sample["seed"] for sample in several] == [2**63 - 1, 0, 1]
    assert several[1]["text"] == json.loads(cli(*words, "--seed", 0).out)[0]["text"]


@pytest.mark.parametrize("value", [-1, 1.5, 10**13, math.nan, math.inf, "7", True, None, np.float32(2)])
def test_functions_refuse_what_their_options_refuse(value: Any, first: groundling.Run) -> None:
    calls: dict[str, Callable[[], object]] = {
        "--max-new-tokens": lambda: first.generate("The", max_new_tokens=value),
        "--html-tokens": lambda: first.evaluate(html_tokens=value),
        "--top-k": lambda: first.generate("The", top_k=value) if value is not None else Sampling(top_k=-1),
        "--average": lambda: export(first, to="gguf", average=value),
        "--kills": lambda: selftest(kills=value),
        "--vocab-sizes": lambda: compare_tokenizers("python-docs", vocab_sizes=[300, value]),
    }
    for option, call in calls.items():
        with pytest.raises(ValueError, match=f"^{option} must be "):
            call()
    assert first.generate("The", max_new_tokens=np.int32(3), seed=1) == first.generate("The", max_new_tokens=3, seed=1)
