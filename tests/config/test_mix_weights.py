"""Weights of a mix: as words and as a dict, as exact shares, and refused where they are none."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from groundling.config import Config, Mix, read_mix


@pytest.mark.parametrize(
    "given",
    [["a.txt=0.9:0.1", "b=c/=1"], {"a.txt": (0.9, 0.1), "b=c/": 1}, {Path("a.txt"): [0.9, 0.1], "b=c/": 1.0}],
)
def test_words_and_dicts_give_the_same(given: Any) -> None:
    assert read_mix(given) == (["a.txt", "b=c/"], Mix(((0.9, 0.1), (1.0, 1.0))))


def test_shares_are_exact() -> None:
    assert Mix(((0.7, 2.0), (0.3, 1.0))).shares == [
        (Fraction(7, 10), Fraction(2, 3)),
        (Fraction(3, 10), Fraction(1, 3)),
    ]
    assert Mix(((0.7, 0.7), (0.3, 0.3))).is_normal and not Mix(((0.7, 2.0), (0.3, 1.0))).is_normal


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["a.txt"], r"--mix 'a\.txt': give each text a weight, such as a\.txt=0\.5\."),
        (["a=x"], "--mix a=x: a weight is a number, or two with a colon"),
        (["a=1:2:3"], "--mix a=1:2:3: a weight is a number, or two with a colon"),
        ({"a": True}, "--mix a=True: a weight is a number"),
        (["a=0.5", "a=0.5"], "--mix has a twice"),
        (["a=-1", "b=2"], r"--mix: a weight must be 0 or a positive number, not -1\.0\."),
        (["a=nan"], "must be 0 or a positive number, not nan"),
        (["a=inf"], "must be 0 or a positive number, not inf"),
        (["a=0", "b=0:1"], "--mix: all weights are 0"),
        ([], "--mix takes 1 to 100 texts"),
    ],
)
def test_what_is_no_weight_is_refused(given: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_mix(given)


def test_a_record_holds_the_weights_and_the_command_repeats_them() -> None:
    mix = Mix(((0.9, 0.1), (1.0, 1.0)), steps=40)
    config = Config.from_dict(
        Config.build(("a.txt", "b.txt")).to_dict() | {"mix": {"weights": [[0.9, 0.1], [1, 1]], "steps": 40}}
    )
    assert config.mix == mix and Config.from_dict(config.to_dict()) == config
    assert config.train_arguments == ["--mix", "a.txt=0.9:0.1", "b.txt=1"]
    assert "mix" not in Config.build("a.txt").to_dict() and Config.build("a.txt").train_arguments == ["a.txt"]
    with pytest.raises(ValueError, match="a weight must be 0 or a positive number"):
        Config.from_dict(config.to_dict() | {"mix": {"weights": [[-math.pi, 1]], "steps": 0}})
