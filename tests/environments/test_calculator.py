"""The calculator and the parser under it: exact values, and refusals that are quick."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundling.environments.calculator import calculate, evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("47+38", "85"), ("2+3*4", "14"), ("(2+3)*4", "20"), ("9-3-2", "4"), ("9-(3-2)", "8"), ("24/6/2", "2"),
        ("-5+3", "-2"), ("2*(-3)", "-6"), ("-7/7", "-1"), ("0", "0"), ("((((((((1))))))))", "1"),
        ("999999999*999999999", "999999998000000001"),
    ],
)  # fmt: skip
def test_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "", " ", "1 + 2", "47+38\n", "007", "1234567890", "7/2", "7/0", "7/(3-3)", "9**9**9", "2--3", "2*-3", "+5",
        "1.5", "1e9", "٣+٤", "２+2", "x", "(1", "1)", "()", "1+", "2(3)", "(((((((((1)))))))))", "1+" * 32 + "1",
        "(" * 10**7, "9" * 10**7, "__import__('os')", "1//1", "5%3", "1,2",
    ],
    ids=lambda expression: repr(expression[:20]),
)  # fmt: skip
def test_refusals(expression: str) -> None:
    start = time.perf_counter()
    assert calculate(expression) == "error"
    assert time.perf_counter() - start < 0.1


TREES = st.recursive(
    st.integers(0, 99).map(lambda n: (str(n), Fraction(n), [n])),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        lambda parts: (
            f"({parts[0][0]}){parts[1]}({parts[2][0]})",
            {
                "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
                "/": lambda a, b: a / b if a is not None and b else None,
            }[parts[1]](parts[0][1], parts[2][1])
            if None not in (parts[0][1], parts[2][1])
            else None,
            parts[0][2] + parts[2][2],
        )
    ),
    max_leaves=5,
)  # fmt: skip


@given(TREES)
def test_it_agrees_with_exact_fractions(tree: tuple[str, Fraction | None, list[int]]) -> None:
    """Where every step is whole; a sum of fractions that happens to be whole is refused."""
    expression, value, numbers = tree
    try:
        found = evaluate(expression)
    except ValueError:
        return
    assert found == (value, numbers)
