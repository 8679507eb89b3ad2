"""The verb `inspect` and the function behind it, as a user meets them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import groundling
from groundling.__main__ import main
from groundling.training.events import Event, Preparing
from tiny import TINY

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


BYTES = TINY | {"tokenizer": "byte", "steps": 1, "warmup_steps": 0}


@pytest.fixture
def chats() -> Path:
    """30 conversations, of which 3 do not fit into 32 tokens."""
    replies = ["no" if i % 2 else "yes" + "." * 40 * (i % 10 == 0) for i in range(30)]
    lines = [json.dumps({"prompt": f"is it {i}", "completion": reply}) for i, reply in enumerate(replies)]
    Path("chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Path("chats.jsonl")


@pytest.mark.usefixtures("first", "chats")
def test_conversations_are_painted_as_a_run_reads_them(call: Call) -> None:
    status, out, err = call("chats.jsonl", "--with", "first", "--html", "page.html", "--examples", "2")
    assert (status, err) == (0, "")
    assert "data      chats: 30 conversations\n" in out
    assert "  ! 10% of the conversations are cut at 32 tokens, the model's context: their end of turn is never" in out
    assert out.count("\n  cut      ") == 1
    second = """
chats.jsonl, line 2
  read     <|im_start|>user⏎
           is it 1<|im_end|>⏎
           <|im_start|>assistant⏎
  learned  no<|im_end|>
  read     ⏎
"""
    assert second in out
    html = Path("page.html").read_text(encoding="utf-8")
    assert html.count('class="painted"') == 2 and ">&lt;|im_end|&gt;</b>" in html

    value = json.loads(call("chats.jsonl", "--with", "first", "--json", "--val-fraction", "0.2")[1])
    assert value["kind"] == "conversations" and value["lengths"]["cut"] == 3
    assert [len(example["sides"]) for example in value["painted"]] == [1, 1, 1]


@pytest.mark.usefixtures("first", "chats")
def test_tokens_are_colored_on_a_terminal_and_text_is_safe(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = call("chats.jsonl", "--with", "first")[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    colored = call("chats.jsonl", "--with", "first")[1]
    assert "\x1b[" in colored and re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in call("chats.jsonl", "--with", "first")[1]
    pair = {"prompt": "[red]a", "chosen": "b\x1b[2J", "rejected": "c"}
    Path("pairs.jsonl").write_text("\n".join(json.dumps(pair | {"prompt": f"[red]a {i}"}) for i in range(3)))
    monkeypatch.delenv("FORCE_COLOR")
    Path("byte.txt").write_text("any text" * 50)
    groundling.train("byte.txt", name="byte", on_event=lambda event: None, **BYTES)
    status, out, _ = call("pairs.jsonl", "--with", "byte")
    assert status == 0 and "[red]a 0" in out and "\x1b" not in out
    assert re.search("chosen +rejected *\n", out) and re.search(
        r"learned  b␛\[2J<\|im_end\|> +learned  c<\|im_end\|>", out
    )


@pytest.mark.usefixtures("first", "chats")
def test_conversations_without_a_run_are_named(call: Call) -> None:
    said = "note: chats.jsonl has conversations, pairs or prompts. To see what a run would learn of them: "
    status, _, err = call("chats.jsonl")
    assert status == 1 and err.startswith(said + "`groundling inspect chats.jsonl --with RUN`.\n")
    Path("chats.jsonl").write_text("\n".join(Path("chats.jsonl").read_text().split("\n")[1:7]))
    status, out, err = call("chats.jsonl", "--format", "text", "--val-fraction", "0.3")
    assert status == 0 and err.startswith(said) and "6 lines" in out
    Path("texts.jsonl").write_text('{"text": "some text, and more of it"}\n' * 20)
    assert call("texts.jsonl", "--val-fraction", "0.3")[2] == ""
