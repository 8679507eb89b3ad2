"""The command prepare."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from groundling.config import CorpusSettings
from groundling.data.corpus import prepare
from groundling.data.sources import find_source


def test_a_text_is_prepared_for_training(cli: Any, text_file: Path, prose: str) -> None:
    done = cli("prepare", text_file, "--json")
    made, n = json.loads(done.out), len(prose)
    assert done.status == 0
    assert (made["name"], made["files"], made["documents"], made["characters"]) == ("prose", 1, 1, n)
    assert (made["tokens"], made["training_tokens"], made["validation_tokens"]) == (n, n * 9 // 10, n - n * 9 // 10)
    assert (made["tokenizer"], made["vocab_size"], made["bytes"]) == ("char", len(set(prose)), len(prose.encode()))
    did: list[str] = []  # by `train`, which calls the same function
    corpus = prepare(find_source(text_file), CorpusSettings(), progress=lambda doing, *_: did.append(doing))
    assert set(did) == {"checking"}
    assert str(corpus.train.path.parent) == made["folder"] and corpus.fingerprint == made["fingerprint"]


def test_what_was_read_is_shown(cli: Any) -> None:
    Path("a.jsonl").write_text('{"text": "one"}\n' * 30 + '{"text": "two"}\n', encoding="utf-8")
    done = cli("prepare", "a.jsonl", "--deduplicate", "--tokenizer", "byte", "--processes", 1)
    assert done.status == 0
    assert "Left out 29 of 31 documents: copies of earlier ones." in done.err
    rows = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert rows["text"] == "a: 1 file(s), 0.0 MB, 2 document(s), 6 characters"
    assert rows["tokens"] == "8: 7 for training, 1 for validation; byte tokenizer, vocabulary of 257"
    assert "tokens/s" in rows["time"] and Path(rows["folder"], "tokens.bin").is_file()


def test_what_cannot_be_is_refused(cli: Any, text_file: Path) -> None:
    for value, said in (("0", "at least 1"), ("1001", "at most 1,000")):
        done = cli("prepare", text_file, "--processes", value)
        assert done.status == 1 and f"--processes must be {said}" in done.err, done.err
    assert "There is no corpus 'nowhere.txt'" in cli("prepare", "nowhere.txt").err


def test_without_ray_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, cli: Any, text_file: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'needs ray: pip install "groundling[ray]"' in cli("prepare", text_file, "--executor", "ray").err
    assert "does nothing without --executor ray" in cli("prepare", text_file, "--ray-address", "x:1").err
    assert "--processes does nothing with" in cli("prepare", text_file, "--executor", "ray", "--processes", 2).err


def test_a_ray_cluster_that_is_not_there_is_named(cli: Any, text_file: Path) -> None:
    pytest.importorskip("ray")
    done = cli("prepare", text_file, "--executor", "ray", "--ray-address", "127.0.0.1:1")
    assert done.status == 1
    assert done.err.startswith("groundling: Ray cannot use the cluster 127.0.0.1:1: Connection refused. Check --ray-")
