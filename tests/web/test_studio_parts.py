"""What the studio's pages stand on, without a browser: files read as they grow, processes, uploads, the policy."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import groundling
from groundling import storage
from groundling.__main__ import main
from groundling.analysis.memorization import TrainingText
from groundling.config import Sampling
from tiny import TINY

pytest.importorskip("nicegui", reason="needs the extra studio")

from groundling.web.sockets import url
from groundling.web.studio.charts import comparison
from groundling.web.studio.live import Live, Tail
from groundling.web.studio.playground import copied_tokens, for_strip
from groundling.web.studio.policy import policy
from groundling.web.studio.processes import Processes
from groundling.web.studio.studio import Studio
from groundling.web.studio.writing import Choice, GeneratedToken, opened, write

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """A folder of runs with one in it, `first`."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        (folder / "prose.txt").write_text(prose, encoding="utf-8")
        groundling.train(folder / "prose.txt", name="first", out=folder / "runs", on_event=lambda _: None, **TINY)
    return folder / "runs"


# Files that grow.


def noted(*sentences: object) -> str:
    return "".join(json.dumps({"event": "notice", "sentence": str(each)}) + "\n" for each in sentences)


def read(tail: Tail) -> list[str]:
    return [line["sentence"] for line in tail.lines]


def test_a_file_is_read_on_as_it_grows(write: Write) -> None:
    path = write("metrics.jsonl", noted(1, 2) + noted(3)[:9])
    tail = Tail(path)
    assert tail.read() and read(tail) == ["1", "2"]
    assert not tail.read()
    with path.open("a") as file:
        file.write(noted(3)[9:])
    assert tail.read() and read(tail) == ["1", "2", "3"]


def test_a_file_that_was_replaced_is_read_anew(write: Write) -> None:
    path = write("metrics.jsonl", noted(1, 2, 3))
    tail = Tail(path)
    tail.read()
    storage.write_file(path, noted(1, 7, 8, 9))
    assert tail.read() and read(tail) == ["1", "7", "8", "9"]
    assert not Tail(path.with_name("not there")).read()


@pytest.mark.parametrize("line", ["no JSON", "[" * 100, '{"event": "step"}', "7"])
def test_a_line_that_is_no_event_is_told_each_time(write: Write, line: str) -> None:
    tail = Tail(write("metrics.jsonl", noted(1) + line + "\n"))
    for _ in range(2):  # it does not pass by itself
        with pytest.raises(ValueError, match=r"metrics.jsonl is damaged"):
            tail.read()


def test_a_run_is_seen_as_it_grows(trained: Path, tmp_path: Path) -> None:
    """Its lines one after the other, as another process would write them."""
    whole = groundling.load("first", out=trained)
    folder = tmp_path / "run"
    folder.mkdir()
    live = Live(folder)
    live.refresh()
    assert live.facts is None and live.version == 0
    storage.write_json(folder / "config.json", whole.record.to_dict())
    with (folder / "metrics.jsonl").open("a") as file:
        for line in whole.metrics():
            before = live.version
            file.write(json.dumps(line) + "\n")
            file.flush()
            live.refresh()
            assert live.version == before + 1
            if line["event"] == "step":
                assert live.last == line and live.seconds_left == line["seconds_left"]
    assert live.facts is not None and live.facts.last_step == 40
    assert live.facts.history.validation.tolist() == [
        line["validation_loss"] for line in whole.metrics() if line["event"] == "evaluation"
    ]


def test_a_run_of_another_version_is_told_each_time(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "first", tmp_path / "run")
    record = storage.read_json(tmp_path / "run" / "config.json")
    del record["settings"]["model"]["n_layer"]
    storage.write_json(tmp_path / "run" / "config.json", record)
    live = Live(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(ValueError, match="n_layer"):
            live.refresh()


def test_runs_are_compared(trained: Path) -> None:
    chart, last, missing = comparison(Studio(trained), ["first"], "bits per byte", "step")
    assert chart is not None and [curve.name for curve in chart.curves] == ["first"]
    assert (last, missing) == (40.0, [])
    evaluated = [line for line in groundling.load("first", out=trained).metrics() if line["event"] == "evaluation"]
    assert list(chart.curves[0].y) == [line["bits_per_byte"] for line in evaluated]
    by_time, _, _ = comparison(Studio(trained), ["first"], "validation loss", "second")
    assert by_time is not None and list(by_time.curves[0].x) == [line["elapsed"] for line in evaluated]


# Processes.

HOLDER = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from groundling.run.lock import lock
with ExitStack() as stack:
    lock(Path(sys.argv[1]), stack)
    try:
        print("held", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(7)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of the run in tmp_path / "run", as one in a terminal that trains it."""
    (tmp_path / "run").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for other processes")
def test_a_run_of_a_terminal_is_found_and_paused(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    processes = Processes()
    found = processes.training(tmp_path / "run")
    assert found is not None and found.pid == holder.pid
    assert processes.training(tmp_path / "other") is None
    processes.pause(tmp_path / "run")
    assert holder.wait(timeout=10) == 7
    assert processes.training(tmp_path / "run") is None
    with pytest.raises(ValueError, match="is not training"):
        processes.pause(tmp_path / "run")


@pytest.mark.parametrize(
    "pid", [os.getppid(), "1", -1, 2**80, None, [1]], ids=["real", "text", "negative", "huge", "none", "list"]
)
def test_a_process_without_the_lock_is_never_paused(tmp_path: Path, pid: object) -> None:
    """A stranger's run may name any process as the one that trains it."""
    storage.write_json(tmp_path / "holder.json", {"pid": pid})
    assert Processes().training(tmp_path) is None


def test_what_fails_says_why(tmp_path: Path) -> None:
    studio = Studio(tmp_path / "runs")
    folder = studio.out / "new"
    studio.processes.start(folder, ["train", "--minutes", "soon"])
    assert studio.processes.training(folder) is not None and studio.folder("new") == folder
    for _ in range(600):
        if studio.processes.training(folder) is None:
            break
        time.sleep(0.05)
    assert "soon" in (studio.processes.failure(folder) or "")
    assert studio._free_name("new") == "new"  # what it left is gone
    assert not folder.exists()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"corpus": ""}, "Choose a text"),
        ({"corpus": "-"}, "Choose a text"),
        ({"corpus": "/not/there"}, "no such file"),
        ({"minutes": 0.0}, "minutes"),
        ({"minutes": float("nan")}, "minutes"),
        ({"preset": "huge"}, "preset"),
        ({"name": "../up"}, "is not a valid name"),
        ({"name": "--steps"}, "is not a valid name"),
        ({"name": "first"}, "already"),
    ],
)
def test_what_cannot_be_started_is_refused(trained: Path, write: Write, asked: dict[str, Any], sentence: str) -> None:
    wanted = {"corpus": str(write("t.txt", "text")), "minutes": 1.0, "preset": None, "tokenizer": "char", "name": "n"}
    studio = Studio(trained)
    with pytest.raises((ValueError, OSError), match=sentence):
        studio.begin(**wanted | asked)
    assert not studio.processes.all_started()


@pytest.mark.parametrize("name", ["", ".", "..", "../runs/first", "first/../first", "/etc", "nothing", "fir\0st"])
def test_only_runs_of_the_folder_are_opened(trained: Path, name: str) -> None:
    with pytest.raises(ValueError):
        Studio(trained).live(name)


# Uploads.


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("my notes.txt", "my-notes.txt"), ("../../etc/passwd", "passwd"), ("C:\\texts\\a.md", "a.md"), ("", "text"),
        ("..", "text"), ("a\0b.txt", "a-b.txt"), ("-rf.txt", "rf.txt"), ("x" * 300 + ".txt", "x" * 96 + ".txt"),
        ("book.txt.gz", "book.txt.gz"), ("été.txt", "été.txt"), ("Война.txt", "Война.txt"),
    ],
)  # fmt: skip
def test_an_upload_gets_a_safe_name(tmp_path: Path, name: str, kept: str) -> None:
    studio = Studio(tmp_path)
    place = studio.place_for_upload()
    place.write_text("text")
    path = studio.keep_upload(name, place)
    assert path == tmp_path / "texts" / kept
    assert path.read_text() == "text" and not place.exists()


def test_uploads_of_one_name_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studio, kept = Studio(tmp_path), []
    for text in ("one", "two", "one"):
        place = studio.place_for_upload()
        place.write_text(text)
        kept.append(studio.keep_upload("a.txt", place).name)
    assert kept == ["a.txt", "a-2.txt", "a.txt"]
    monkeypatch.setattr("groundling.web.studio.studio.MAX_UPLOAD", 2)
    place = studio.place_for_upload()
    place.write_text("long")
    with pytest.raises(ValueError, match="larger than"):
        studio.keep_upload("b.txt", place)
    assert sorted(path.name for path in (tmp_path / "texts").iterdir()) == ["a-2.txt", "a.txt"]


# Writing.


def test_it_writes_what_the_run_writes(trained: Path) -> None:
    run = opened(trained.resolve() / "first")
    sampling = Sampling(temperature=0.9, top_k=20, seed=3)
    prompt = run.tokenizer.encode("The ")
    written = list(write(run, prompt, sampling, 40))  # the context is 32: past it too
    assert "".join(token.text for token in written) == "".join(run.stream("The ", sampling, 40))
    for token in written:
        assert len(token.choices) == 10
        assert [c.probability for c in token.choices] == sorted((c.probability for c in token.choices), reverse=True)
        found = [c for c in token.choices if c.token == token.token]
        assert not found or found[0].probability == pytest.approx(token.probability)
    with torch.inference_mode():
        first = run.model(torch.tensor([prompt]))[0, -1].softmax(-1)
    assert written[0].probability == pytest.approx(float(first[written[0].token]), rel=1e-4)


def test_a_branch_goes_on_from_the_other_token(trained: Path) -> None:
    run = opened(trained.resolve() / "first")
    prompt, greedy = run.tokenizer.encode("The "), Sampling(temperature=0.0)
    other = next(write(run, prompt, greedy, 1)).choices[4]
    branched = [token.token for token in write(run, [*prompt, other.token], greedy, 5)]
    text = run.tokenizer.decode([*prompt, other.token])
    assert run.tokenizer.decode(branched) == run.generate(text, max_new_tokens=5, temperature=0.0)


def test_copied_spans_are_marked_token_by_token() -> None:
    text = TrainingText(["A long line that stands in the text.", "Another long line, which also does."])
    pieces = ["Xx", "A long line that ", "", "stands in the text", "Another long ", "line, which also does", "yy"]
    tokens = [GeneratedToken(0, piece, 1.0, (Choice(0, piece, 1.0),)) for piece in pieces]
    assert copied_tokens(tokens, text.report("".join(pieces))) == [0, 1, 1, 1, 2, 2, 0]
    assert for_strip(GeneratedToken(0, "\x1b[1m", 0.5, (Choice(1, "\0", 0.25),))) == ["␛[1m", 0.5, [["␀", 0.25]]]


# The policy.


def test_a_page_may_run_its_own_scripts_and_no_others() -> None:
    page = b'<script>one()</script><script type="module">two()\n</script><script src="/x.js"></script>'
    told = policy(page)
    for code in (b"one()", b"two()\n"):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(code).digest()).decode()}'" in told
    assert told.count("sha256-") == 2
    assert "'unsafe-inline'" not in told.split("style-src")[0]
    assert "default-src 'none'" in told and "connect-src 'self'" in told and "http" not in told


# The verb.


def test_where_nicegui_is_missing_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "nicegui", None)
    monkeypatch.delitem(sys.modules, "groundling.web.studio.app", raising=False)
    with pytest.raises(SystemExit, match="1"):
        main(["studio", "--port", "0"])
    assert capsys.readouterr().err == 'groundling: The studio needs nicegui: pip install "groundling[studio]".\n'


def test_an_ipv6_address_is_in_brackets() -> None:
    assert url(Mock(getsockname=lambda: ("::1", 8001, 0, 0))) == "http://[::1]:8001"


def test_it_listens_on_this_machine_alone(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["studio", "--host", "0.0.0.0"])
    said = capsys.readouterr().err
    assert "listens on loopback addresses only, not on 0.0.0.0" in said and len(said.splitlines()) == 1
