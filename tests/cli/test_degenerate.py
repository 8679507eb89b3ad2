"""The smallest and dullest texts that can be trained on, through every command: a result, or one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

SHORT = "--preset nano --n-layer 1 --n-head 1 --n-embd 8 --block-size 4 --batch-size 2 --steps 3 --eval-every 1"
TRAIN = [*SHORT.split(), "--sample-tokens=5", "--device=cpu", "--norm=rmsnorm", "--position=rope", "--mlp=swiglu"]

# A file, or a folder's files.
TEXTS: dict[str, str | dict[str, str]] = {
    "one character": "a" * 60,
    "line breaks": "\n" * 60,
    "spaces": " " * 60,
    "one line again and again": "same line\n" * 12,
    "a long line": "abcdefghij " * 400,
    "emoji": "😀😃👨‍👩‍👧🏳️‍🌈" * 8,
    "combining marks": "e\u0301\u0300\u0323" * 16,
    "all different": "".join(map(chr, range(0x4E00, 0x4E00 + 60))),
    "end marks": "a<|endoftext|>" * 30,
    "documents of one character": {f"{i:02}.txt": "a" for i in range(40)},
    "one short document": {"a.txt": "hello world " * 20, "b.txt": "x", "c.txt": "hello world " * 20},
    "empty documents": {"a.jsonl": '{"text": ""}\n{"text": "ab"}\n' * 30},
}
QUICK = [
    ("char", "one character"), ("char", "emoji"), ("char", "all different"), ("char", "end marks"),
    ("char", "documents of one character"), ("char", "empty documents"), ("byte", "emoji"), ("bpe", "all different"),
]  # fmt: skip
SLOW = [
    ("bpe", "end marks"),
    ("byte", "one character"),
    *(("char", name) for name in TEXTS if ("char", name) not in QUICK),
]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
COMMANDS = [
    "resume RUN --steps 4 --json", "sample RUN --max-new-tokens 5 --originality --json", "eval RUN --json",
    "sample RUN --max-new-tokens 5 --originality --top-p 0.9 --min-p 0.1 --repetition-penalty 2",
    "eval RUN --sliding --html eval.html --max-tokens 1", "eval RUN --text TEXT --json", "explain RUN --json",
    "explain RUN", "plot RUN", "plot RUN RUN --to two.png", "report RUN", "runs --json", "runs",
    "inspect TEXT --json", "inspect TEXT --html inspect.html", "tokenizer compare TEXT --vocab-sizes 300 --json",
    "tokenizer compare TEXT --vocab-sizes 300", "tokenizer export RUN --out t.json", "export RUN --to gguf --out g",
    "eject RUN --out e",
]  # fmt: skip


def write(text: str | dict[str, str]) -> None:
    if isinstance(text, str):
        Path("text.txt").write_text(text, encoding="utf-8", newline="")
        return
    Path("text.txt").mkdir()
    for name, content in text.items():
        (Path("text.txt") / name).write_text(content, encoding="utf-8", newline="")


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("tokenizer", "name"), CASES)
def test_every_command_has_a_result(tokenizer: str, name: str, cli: Any) -> None:
    write(TEXTS[name])
    made = cli("train", "text.txt", *TRAIN, f"--tokenizer={tokenizer}", "--name=dull", "--json")
    assert made.status == 0, made.err
    results = {}
    for command in COMMANDS:
        done = cli(*command.replace("RUN", "dull").replace("TEXT", "text.txt").split())
        assert done.status == 0, (command, done.err)
        assert "Warning" not in done.err, (command, done.err)
        if "--json" in command:
            results[command] = json.loads(done.out, parse_constant=no_constant)
        assert not re.search(r"\b(nan|inf)\b", done.out), (command, done.out)
    for file in ("metrics.jsonl", "samples.jsonl", "result.json"):
        for line in Path("runs/dull", file).read_text(encoding="utf-8").split("\n" if file[-1] == "l" else "\0"):
            assert not line or json.loads(line, parse_constant=no_constant)
    for page in (Path("runs/dull/report.html"), Path("eval.html"), Path("inspect.html")):
        assert not re.search(r"\b(NaN|nan|inf|Infinity)\b", page.read_text(encoding="utf-8").split("<script")[0])
    if tokenizer == "char" and TEXTS[name] in ("a" * 60, "\n" * 60, " " * 60):  # a vocabulary of one token
        evaluated = results["eval RUN --json"]
        assert (evaluated["loss"], evaluated["perplexity"], evaluated["bits_per_byte"]) == (0, 1, 0)
        assert set(results["explain RUN --json"]["milestones"]) == {0}


@pytest.mark.parametrize(("tokenizer", "smallest"), [("char", 20), ("byte", 20), ("bpe", 20)])
def test_the_smallest_text(tokenizer: str, smallest: int, cli: Any) -> None:
    """Every shorter one is refused in a sentence."""
    for n in (1, 3, 4, 8, smallest - 1, smallest):
        Path("text.txt").write_text("abcdefghijklmnopqrstuvwxyz"[:n], encoding="utf-8")
        done = cli("train", "text.txt", *TRAIN, f"--tokenizer={tokenizer}", f"--name=n{n}", "--json")
        if n < smallest - 1:
            (error,) = [line for line in done.err.splitlines() if not line.startswith("note: ")]
            assert done.status == 1 and error.startswith("groundling: The ") and "Use a longer text" in error
    assert done.status == 0, done.err
    assert cli("eval", f"n{n}", "--json").status == cli("report", f"n{n}").status == 0


@pytest.mark.parametrize("content", ["", "\ufeff", "a\0b\0" * 20, "<|endoftext|>" * 12])
def test_what_is_no_text_is_refused(content: str, cli: Any) -> None:
    write(content)
    for command in (["train", *TRAIN], ["inspect"], ["tokenizer", "compare"], ["tokenizer", "train", "--out=t.json"]):
        done = cli(*command, "text.txt")
        assert done.status == 1, command
        assert len([line for line in done.err.splitlines() if not line.startswith("note: ")]) == 1, done.err
    assert [path.name for path in Path.cwd().iterdir() if path.name != "cache"] == ["text.txt"]
