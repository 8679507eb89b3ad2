"""The verb `inspect` and the function behind it, as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import groundling
from groundling.__main__ import main
from groundling.training.events import Event, Preparing

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process: (status, standard output, standard error)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(["inspect", *map(str, arguments)])
        return int(exit.value.code or 0), *capfd.readouterr()

    return call


def test_the_verb_tells_what_the_function_found(call: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    report = groundling.inspect(text_file, minutes=1, html="report.html", on_event=events.append)
    doing = {event.doing for event in events if isinstance(event, Preparing)}
    assert {"checking", "tokenizing", "counting", "counting n-grams of", "comparing the two parts of"} <= doing

    advice = report.recommendation
    assert advice is not None
    assert advice.minutes == 1
    assert (advice.tokenizer, advice.vocab_size) == ("char", report.text.alphabet)
    assert advice.steps > 0
    low, likely, high = advice.expected_loss
    assert low < likely < high
    per_step = advice.epochs * report.tokens.training_tokens / advice.steps
    assert advice.memorises_after_steps * per_step == pytest.approx(
        advice.memorises_after_epochs * report.tokens.training_tokens, rel=0.05
    )

    page = Path("report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert f"{report.tokens.bigrams_present:,} of the" in page
    assert f"groundling train {text_file} --minutes 1" in page

    monkeypatch.setattr("groundling.checkup.inspect.inspect", lambda *_, **__: report)  # it takes seconds
    status, out, err = call(text_file, "--minutes", "1", "--html", "report.html")
    assert (status, err) == (0, "")
    for words in (
        "30,000 characters", f"{report.text.lines:,} lines", "Latin", "en 100%",
        f"{report.tokens.bigrams_present:,} of {report.tokens.bigrams_possible:,} possible ones",
        f"{report.milestones.best:8} {min(m.loss for m in report.milestones.models):7.3f}",
        "Findings:", "Recommended for 1 minutes on this machine", f"groundling train {text_file} --minutes 1",
        "report.html",
    ):  # fmt: skip
        assert words in out, words


def test_json_alone_stands_on_standard_output(call: Call) -> None:
    Path("short.txt").write_text("A short text of some words.\n" * 10, encoding="utf-8")
    status, out, _ = call("short.txt", "--json", "--val-fraction", "0.2")
    value = json.loads(out)
    assert status == 0
    assert (value["tokens"]["training_tokens"], value["tokens"]["validation_tokens"]) == (224, 56)
    assert value["recommendation"] is None


def test_a_terminal_is_safe_from_the_text(call: Call) -> None:
    Path("short.txt").write_text("\x1b[31mred\x1b[2J and a line that is repeated\n" * 3, encoding="utf-8")
    status, out, _ = call("short.txt")
    assert status == 0
    assert "a line that is repeated" in out
    assert "\x1b" not in out


def test_a_text_shorter_than_a_context_gets_no_recommendation(call: Call) -> None:
    Path("short.txt").write_text("A short text, which is too short.\n" * 5, encoding="utf-8")
    status, out, _ = call("short.txt")
    assert status == 0
    assert "Too short to train on: 153 tokens" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.txt"], "There is no corpus 'nowhere.txt'"),
        (["empty.txt"], "is empty"),
        (["one.txt"], "has 1 character(s), too few"),
        (["latin.txt"], "is not valid UTF-8: byte 0xE9 in line 1"),
        (["prose.txt", "--html", "nowhere/report.html"], "--html nowhere/report.html: the folder"),
        (["prose.txt", "--minutes", "0"], "--minutes must be at least 0.2"),
        (["prose.txt", "--minutes", "-1"], "--minutes"),
        (["prose.txt", "--glob", "*.txt"], "--glob chooses files of a folder"),
        (["prose.txt", "--val-fraction", "2"], "--val-fraction must be at most 0.5"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments: list[str], words: str, call: Call, text_file: Path) -> None:
    Path("empty.txt").touch()
    Path("one.txt").write_text("a", encoding="utf-8")
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    status, out, err = call(*arguments)
    assert status in (1, 2)
    assert out == ""
    assert words in err
    assert err.startswith("groundling: ")
    assert len(err.splitlines()) == 1
    assert not Path("nowhere").exists()
