"""Which run came from which: `groundling runs`, as a list and as a tree."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling import storage
from groundling.__main__ import main
from groundling.data.progress import silent
from tiny import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """The runs `base`, `chatty`, which is fine-tuned from it, and `later`, from that one by its record."""
    where = tmp_path_factory.mktemp("family")
    chats = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(40)]
    (where / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    (where / "prose.txt").write_text(prose, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(where / "cache"))
        options: dict[str, Any] = {"out": where / "runs", "on_event": silent}
        settings = TINY | {"steps": 2, "warmup_steps": 0, "tokenizer": "byte", "eval_every": 1}
        groundling.train(where / "prose.txt", name="base", **settings, **options)
        groundling.sft("base", where / "chats.jsonl", name="chatty", steps=2, device="cpu", **options)
    later = where / "runs" / "later"
    shutil.copytree(where / "runs" / "chatty", later)
    record = json.loads((later / "config.json").read_text(encoding="utf-8"))
    parent = record["lineage"][-1] | {"run": "chatty", "task": "sft", "step": 2, "weights": "1" * 64}
    record["lineage"].append(parent)
    record["others"] = {"teacher": parent | {"run": "lost"}}
    storage.write_json(later / "config.json", record)
    return where / "runs"


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit:
        main(["runs", *map(str, arguments)])
    assert not exit.value.code
    return capsys.readouterr().out


def test_the_list_names_tasks_and_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--out", folder).splitlines()
    assert lines[0].split() == ["run", "task", "corpus", "preset", "step", "best", "score", "status"]
    rows = {line.split()[0]: line.split() for line in lines[1:]}
    assert (rows["base"][1], rows["chatty"][1]) == ("pretraining", "sft")
    assert rows["chatty"][5:7] == ["validation", "loss"]


def test_the_tree_shows_who_descends_from_whom(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--tree", "--out", folder).splitlines()
    assert [re.split(r"  (?=\w+ · )", line)[0] for line in lines] == ["base", "└── chatty", "    └── later"]
    assert "sft · step 2 · best validation loss " in lines[1]
    assert lines[2].endswith(" · teacher: lost (gone)")
    (root,) = json.loads(printed(capsys, "--tree", "--json", "--out", folder))
    assert root["name"] == "base"
    (child,) = root["children"]
    assert (child["name"], child["task"], child["metric"]) == ("chatty", "sft", "validation loss")
    assert child["children"][0]["uses"] == {"teacher": {"run": "lost", "step": 2, "gone": True}}


def test_a_parent_that_is_gone_is_shown_as_gone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", "later"):
        shutil.copytree(folder / name, tmp_path / "runs" / name)
    lines = printed(capsys, "--tree").splitlines()
    assert "chatty  sft · gone" in lines[1]
    assert "later  sft" in lines[2]
    shutil.rmtree(tmp_path / "runs" / "base")
    assert printed(capsys, "--tree").splitlines()[0] == "base  pretraining · gone"


def test_a_later_run_of_a_parent_s_name_is_not_the_parent(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", "chatty"):
        shutil.copytree(folder / name, tmp_path / "runs" / name)
    record = json.loads((tmp_path / "runs/base/config.json").read_text(encoding="utf-8"))
    storage.write_json(tmp_path / "runs/base/config.json", record | {"created": "2100-01-01T00:00:00+00:00"})
    tree = json.loads(printed(capsys, "--tree", "--json"))
    assert [(node["name"], node["status"]) for node in tree] == [("base", "gone"), ("base", "finished")]
