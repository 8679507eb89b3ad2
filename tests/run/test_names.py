"""Names of runs: made from any text, and found again however they are typed."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import groundling
from groundling.run.folder import as_name, checked_name, is_name, runs_folder
from groundling.run.run import Run

ODD = st.text(
    st.characters() | st.sampled_from("-._ /\\\u0301\u034f\u200d\ufe0f\u202e\u3164😀auxconnul1"), max_size=150
)


@given(ODD)
@example("con" + "-" * 100 + "x")
@example("aux." + "x" * 200)
@example("e\u034f\u0301")
def test_every_text_makes_a_valid_name(text: str) -> None:
    name = as_name(text)
    assert is_name(name) and as_name(name) == name
    assert is_name(f"{name}-999") and checked_name(unicodedata.normalize("NFD", name)) == name
    assert as_name(unicodedata.normalize("NFD", text)) == as_name(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("prose", "prose"), ("a text, and more", "a-text-and-more"), ("v1.2_x--y", "v1.2_x--y"), ("-x", "x"),
        ("Война и мир", "Война-и-мир"), ("紅樓夢", "紅樓夢"), ("ألف ليلة وليلة", "ألف-ليلة-وليلة"), ("हिन्दी", "हिन्दी"),
        ("cafe\u0301", "café"), ("می\u200cخواهم", "می-خواهم"), ("\u202eabc", "abc"), ("1\ufe0f\u20e3", "1\u20e3"),
        ("aux", "aux-run"), ("NUL.tar", "NUL-run.tar"), ("com¹", "com¹-run"), ("auxiliary", "auxiliary"),
        ("😀🙂", "run"), ("\u0301\u0302", "run"), ("...", "run"), ("", "run"), ("a" * 300, "a" * 96),
        ("語" * 300, "語" * 32), ("\u3164", "run"),
    ],
)  # fmt: skip
def test_a_name_keeps_letters_and_digits_of_every_script(text: str, name: str) -> None:
    assert as_name(text) == name


@pytest.mark.parametrize(
    "name", ["-x", "\u0301a", "cafe\u0301", "a b", "a'b", "😀", "aux", "com¹.x", "語" * 34, "\u3164"]
)
def test_other_names_are_none(name: str) -> None:
    assert not is_name(name)


def test_a_name_is_one_that_the_file_system_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert [as_name(text) for text in ("тест", "тест 2", "a-é")] == ["run", "2", "a"]


def test_a_wrong_name_is_refused_with_one_that_works() -> None:
    with pytest.raises(ValueError, match=r"--name 'aux' is not a valid name: .*, such as 'aux-run'\."):
        checked_name("aux")


def test_texts_of_the_same_name_become_two_runs(write: Callable[..., Path], prose: str, tiny: dict[str, Any]) -> None:
    short = tiny | {"steps": 1, "warmup_steps": 0, "eval_every": 1, "sample_every": 0}
    files = ("Война.txt", "Мир.txt", "👍.txt", "👎.txt", "aux.txt", "é.txt", "e\u0301.txt", "語" * 70 + ".txt")
    runs = [groundling.train(write(name, prose[:3000]), on_event=lambda _: None, **short) for name in files]
    long = "語" * 32
    assert [run.name for run in runs] == ["Война", "Мир", "run", "run-2", "aux-run", "é", "é-2", long]
    for run in runs:
        assert run.reference == run.name
        for form in ("NFC", "NFD"):
            assert groundling.load(unicodedata.normalize(form, run.name)).folder == run.folder


def test_a_run_is_found_by_the_reference_that_is_printed(
    text_file: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tiny | {"steps": 1, "warmup_steps": 0, "eval_every": 1, "sample_every": 0}
    made = groundling.train(text_file, name="x", on_event=lambda _: None, **short).folder
    old = {"a" * 120: "a" * 120, "aux.txt": "aux.txt", "cafe\u0301": "cafe\u0301", "-x": "runs/-x"}
    for name, reference in old.items():
        shutil.copytree(made, runs_folder() / name)
        assert Run((runs_folder() / name).resolve()).reference == reference
        assert groundling.load(reference).name == name
    for place in (tmp_path / "x", tmp_path / "-x", tmp_path / "~", tmp_path / "my runs" / "x"):
        shutil.copytree(made, place)
        reference = Run(place).reference
        assert reference == ("my runs/x" if place.parent != tmp_path else f"./{place.name}")
        assert groundling.load(reference).folder == place
    monkeypatch.chdir(tmp_path / "my runs" / "x")
    assert groundling.load(Run(made).reference).folder == made
    assert groundling.load(Run(tmp_path / "my runs" / "x").reference).folder == tmp_path / "my runs" / "x"
