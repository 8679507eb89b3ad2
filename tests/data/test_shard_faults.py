"""Shards when something goes wrong: faulty texts, edits, kills. The result, or the error, is that of a whole text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from groundling import storage
from groundling.config import CorpusSettings
from groundling.data.corpus import prepare
from groundling.data.fingerprint import fingerprint_of
from groundling.data.shards import plan
from groundling.data.shards.plan import shards_of
from groundling.data.shards.pool import workers
from groundling.data.sources import find_source
from groundling.data.tokenizers.base import CharTokenizer

SMALL = 3000  # bytes of a shard in these tests


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD", SMALL)


def refusal(path: Path, chosen: CorpusSettings, processes: int | None = None) -> tuple[str, list[str]]:
    """The error and the notices of preparing a text; without `processes`, as a whole."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        if processes is None:
            patch.setattr(plan, "SHARD", 2**40)
        source = find_source(path, chosen)
        assert (len(shards_of(source)) > 1) == (processes is not None)
        with pytest.raises((ValueError, OSError)) as raised:
            prepare(source, chosen, processes=processes or 1, notice=said.append)
    return f"{type(raised.value).__name__}: {raised.value}", said


LINES = [json.dumps({"text": f"line {i}, of a text"}) for i in range(400)]
FAULTS = {
    "a byte that is not UTF-8": ("a.txt", "some words\n" * 800 + "a \udcff\n" + "more\n" * 999, "0xFF in line 801"),
    "a character cut off at the end": ("b.txt", "words of a text\n" * 800 + "\udce2\udc98", "in line 801"),
    "a line that is not JSON": ("c.jsonl", "\n".join([*LINES, '{"text": ', *LINES]), "line 401 is not valid JSON"),
    "an entry without the field": ("d.jsonl", "\n".join([*LINES, '{"body": "x"}']), "line 401 has no field"),
    "half of a pair": ("e.jsonl", "\n".join([*LINES, '{"text": "\\ud800"}']), "line 401: half of a UTF-16 pair"),
    "a row that is too long": ("f.csv", "text,n\n" + "some words,1\n" * 900 + "a,b,c\n", "line 902 has 3 columns"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "place"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_its_place_in_the_file(
    write: Callable[..., Path], name: str, text: str, place: str
) -> None:
    write("folder/0.txt", "\ufeff" + "before it\n" * 400)
    path = write(f"folder/{name}", text.encode(errors="surrogateescape"))
    expected = refusal(path.parent, CorpusSettings())
    assert place in expected[0] and str(path) in expected[0]
    assert "begins with a UTF-8 byte-order mark" in "".join(expected[1])
    assert refusal(path.parent, CorpusSettings(), 1) == expected
    assert not list(storage.cache_folder().glob("*/*.shards"))


def test_the_first_of_several_faults_is_named_from_any_process(write: Callable[..., Path]) -> None:
    text = "words of a text\n" * 800 + "here: \udcff\n"
    path = write("a.txt", (text * 3).encode(errors="surrogateescape"))
    assert "line 801," in refusal(path, CorpusSettings("byte"), 2)[0]


def test_an_unknown_character_is_named_with_its_place_in_the_document(write: Callable[..., Path]) -> None:
    CharTokenizer(sorted(set("words of a text\n"))).save("t.json")
    chosen = CorpusSettings(tokenizer="t.json")
    path = write("a.txt", "words of a text\n" * 300 + "<|endoftext|>\n" + "of text\n" * 900 + "q")
    expected = refusal(path, chosen)
    assert "a.txt, document 2: The character 'q' (U+0071) at position 7200" in expected[0]
    assert refusal(path, chosen, 1) == expected


def test_an_error_in_a_document_comes_before_those_in_later_ones(write: Callable[..., Path]) -> None:
    """Documents are encoded together, some at a time."""
    CharTokenizer(sorted(set("words of a text"))).save("t.json")
    write("folder/a.txt", "\ufeffwords<|endoftext|>of<|endoftext|>q<|endoftext|>a text")
    write("folder/b.txt", "\ufefftext")
    path = write("folder/c.jsonl", '{"text": "a"}\n{"text": ').parent
    error, said = refusal(path, CorpusSettings(tokenizer="t.json"))
    assert "a.txt, document 3: The character 'q' (U+0071) at position 0" in error
    assert any("a.txt begins" in sentence for sentence in said) and not any("b.txt" in sentence for sentence in said)


def test_an_edit_between_two_shards_is_noticed(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.txt", "words of a text\n" * 800)
    source, real, checked = find_source(path), plan.Shard.check, list[str]()
    fingerprint = fingerprint_of(source).fingerprint

    def check(shard: plan.Shard, name: str) -> None:
        checked.append(shard.name)
        if len(checked) == 4:
            path.write_bytes(path.read_bytes().replace(b"text", b"TEXT"))
        real(shard, name)

    monkeypatch.setattr(plan.Shard, "check", check)
    with pytest.raises(ValueError, match=r"^The text a was changed while it was read\."):
        prepare(source, CorpusSettings("byte"), fingerprint=fingerprint)
    assert not list(storage.cache_folder().glob("tokens/*/"))


def test_a_text_that_was_edited_before_is_noticed(write: Callable[..., Path]) -> None:
    path = write("a.txt", "words of a text\n" * 800)
    fingerprint = fingerprint_of(find_source(path)).fingerprint
    path.write_bytes(path.read_bytes().replace(b"text", b"TEXT"))
    for kind in ("byte", "char", "bpe"):
        with pytest.raises(ValueError, match=r"^The text a was changed while it was read\."):
            prepare(find_source(path), CorpusSettings(kind), fingerprint=fingerprint)


SCRIPT = f"""
import sys
from groundling.data.shards import plan
plan.SHARD = {SMALL}
from groundling.__main__ import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_command_continues(write: Callable[..., Path], prose: str) -> None:
    """And its processes end with it, whether it was killed or interrupted."""
    path = write("a.txt", prose * 20)
    command = [sys.executable, "-c", SCRIPT, "prepare", str(path), "--tokenizer", "byte", "--processes", "2"]
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        before = len(finished())
        while len(finished()) < before + 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        process.communicate()
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number)
        assert len(children) >= 2 and not psutil.wait_procs(children, timeout=10)[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "note: Continuing: " in done.stderr and "were tokenized before." in done.stderr
    source = find_source(path)
    did: list[str] = []
    corpus = prepare(source, CorpusSettings("byte"), progress=lambda doing, *_: did.append(doing))
    assert set(did) == {"checking"}
    parts = [part.read(0, len(part)) for part in (corpus.train, corpus.validation)]
    assert np.concatenate(parts).tolist() == [*(prose * 20).encode(), 256]
    assert not finished()


def finished() -> list[Path]:
    return list(storage.cache_folder().glob("tokens/*.shards/[!.]*/"))


def test_a_process_that_is_gone_is_told() -> None:
    advice = r"Run `groundling prepare` with the same text and a smaller --processes\.$"
    with pytest.raises(OSError, match=advice), workers(2) as submit:
        submit(os._exit, 1)()
