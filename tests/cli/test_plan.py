"""The command plan: what a large run would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_the_command_shows_them(cli: Any) -> None:
    found = json.loads(cli("plan", "--gpus", 8, "--tokens", 10**9, "--json").out)
    fastest = found["layouts"][0]
    assert found["tokens_per_step"] == 480 * 1024 and found["vocab_size"] == 50_257
    assert fastest["days"] == pytest.approx(1e9 / fastest["tokens_per_second"] / 86_400)
    shown = cli("plan", "--gpus", 8, "--tokens", 10**9).out
    assert f"{fastest['tokens_per_second']:,.0f}" in shown and all(line in shown for line in found["assumptions"])


def test_a_corpus_gives_vocabulary_and_tokens(cli: Any, text_file: Path) -> None:
    found = json.loads(cli("plan", text_file, "--preset", "nano", "--gpus", 1, "--gpu", "cpu", "--json").out)
    text = text_file.read_text(encoding="utf-8")
    assert found["vocab_size"] == len(set(text))
    assert found["tokens"] == pytest.approx(0.9 * len(text), rel=0.02)
    assert found["device"]["teraflops"] > 0
