"""A stranger's run: nothing in it runs, nothing outside is touched, and one sentence says what is wrong."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import groundling
from groundling import storage
from groundling.__main__ import main
from groundling.data.files import read_bytes
from groundling.data.sources import find_source
from groundling.run.folder import is_name
from groundling.training.events import Event
from tiny import TINY

CHECKPOINT = "checkpoints/step-000002"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, prose: str, pictures: None) -> Iterator[Path]:
    """A run of two steps, which the tests copy."""
    place = tmp_path_factory.mktemp("honest")
    (place / "prose.txt").write_text(prose[:3000], encoding="utf-8")
    settings = TINY | {
        "n_layer": 1, "n_embd": 16, "block_size": 8, "steps": 2, "eval_every": 1, "eval_tokens": 64,
        "checkpoint_every": 1, "warmup_steps": 0, "norm": "rmsnorm", "position": "rope",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(place / "cache"))
        run = groundling.train(place / "prose.txt", name="run", out=place, on_event=lambda _: None, **settings)
        (run.folder / "result.json").unlink()  # as if it had been stopped: it can be resumed
        yield run.folder


@pytest.fixture
def folder(honest: Path) -> Path:
    """A copy, in the folder of runs."""
    return shutil.copytree(honest, Path("runs/run").absolute())


def sealed(folder: Path, checkpoint: str = CHECKPOINT) -> None:
    """Give a changed checkpoint the manifest that fits it: who makes a folder can do that too."""
    path = folder / checkpoint
    manifest = storage.read_checksummed(path / storage.MANIFEST)
    for name in manifest["files"]:
        file = path / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": storage.sha256(file)}
    storage.write_checksummed(path / storage.MANIFEST, manifest)


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text("utf-8"))
    edit(value)
    file.write_text(json.dumps(value), encoding="utf-8")


def uses() -> dict[str, Callable[[], object]]:
    return {
        "generate": lambda: groundling.load("run").generate("The ", max_new_tokens=3, seed=1),
        "evaluate": lambda: groundling.load("run").evaluate(),
        "explain": lambda: groundling.load("run").explain(),
        "report": lambda: groundling.load("run").report(),
        "plot": lambda: groundling.load("run").plot(),
        "checkpoint": lambda: groundling.load(f"runs/run/{CHECKPOINT}").generate("The ", max_new_tokens=3, seed=1),
        "resume": lambda: groundling.resume("run", steps=3, on_event=lambda _: None),
        "runs": groundling.runs,
    }


def refusals(*names: str) -> dict[str, str]:
    """What uses (all, if none is named) said that refused; none may fail in another way."""
    said = {}
    for name, use in uses().items():
        if names and name not in names:
            continue
        try:
            use()
        except (ValueError, FileNotFoundError) as error:
            said[name] = str(error)
    assert all(said.values())
    return said


class Canary:
    """What touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'"{sys.executable}" -c "open({str(self.path)!r}, \'w\')"',)


def test_an_honest_run_is_used(folder: Path) -> None:
    assert refusals() == {}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (f"{CHECKPOINT}/model.safetensors", "pickle"), (f"{CHECKPOINT}/model.safetensors", "torch.save"),
        (f"{CHECKPOINT}/optimizer.safetensors", "pickle"), (f"{CHECKPOINT}/state.json", "pickle"),
        ("config.json", "pickle"), ("tokenizer.json", "torch.save"), ("metrics.jsonl", "torch.save"),
        ("result.json", "pickle"),
    ],
)  # fmt: skip
def test_a_pickle_by_any_name_is_not_opened(folder: Path, name: str, form: str) -> None:
    canary = Path("canary").absolute()
    content = pickle.dumps(Canary(canary))
    if form == "torch.save":
        file = io.BytesIO()
        torch.save(Canary(canary), file)
        content = file.getvalue()
    (folder / name).write_bytes(content)
    sealed(folder)
    shutil.rmtree(folder / "checkpoints" / "step-000001")
    said = refusals()
    assert not canary.exists()
    if name.startswith("checkpoints"):
        assert str(folder / name) in said["resume"]
    else:  # a resume puts it back from the checkpoint, or leaves it out
        assert any(str(folder / name) in sentence for sentence in said.values())
    if name.endswith("model.safetensors"):
        assert "is not a safetensors file but" in said["generate"]
    pickle.loads(pickle.dumps(Canary(canary)))  # it is a real one
    assert canary.exists()


LINKED = (
    "config.json", "tokenizer.json", "metrics.jsonl", "samples.jsonl", "loss.png", "report.html", ".lock",
    "holder.json", "checkpoints", "checkpoints/best.json", CHECKPOINT, f"{CHECKPOINT}/model.safetensors",
    f"{CHECKPOINT}/state.json",
)  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
def test_a_link_that_leads_out_is_refused_and_nothing_there_is_touched(folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    if (folder / name).exists():
        shutil.move(folder / name, outside)
    else:
        outside.write_text("the user's own")
    (folder / name).symlink_to(outside)
    whole = [outside] if outside.is_file() else sorted(path for path in outside.rglob("*") if path.is_file())
    before = [path.read_bytes() for path in whole]
    said = refusals("generate", "report", "plot", "resume")
    assert len(said) == 4
    assert all("is a link that leads out of its folder" in sentence for sentence in said.values())
    assert groundling.runs()[0]["status"] == "unreadable"
    assert [path.read_bytes() for path in whole] == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", f"{CHECKPOINT}/model.safetensors"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert all("is neither a file nor a folder" in sentence for sentence in refusals("generate", "plot").values())


ABSURD: dict[str, dict[str, Any]] = {
    "layers": {"n_layer": 10**9}, "width": {"n_embd": 2**62}, "negative": {"n_layer": -1}, "nothing": {"n_head": 0},
    "context": {"block_size": 2**24}, "endless": {"rope_theta": 1e309}, "other": {"n_layer": 2},
    "wide": {"n_embd": 2**20, "n_head": 2}, "text": {"n_layer": "1"}, "digits": {"n_layer": 10**4000},
}  # fmt: skip


@pytest.mark.parametrize("kind", ABSURD)
def test_absurd_settings_are_refused_before_a_model_is_made(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (folder, folder / CHECKPOINT):
        for part in ("settings", "requested"):
            change(place / "config.json", lambda record, part=part: record[part]["model"].update(ABSURD[kind]))
    sealed(folder)
    if kind == "context":
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=10**9, available=10**9))
    for module in ("run.folder", "model.initial"):
        monkeypatch.setattr(f"groundling.{module}.GPT", lambda *_: pytest.fail("a model was made"))
    said = refusals("generate", "checkpoint", "resume")
    assert said.keys() == {"generate", "checkpoint", "resume"}
    assert all(len(sentence) < 400 for sentence in said.values())
    if kind == "context":
        assert "GB of memory, but this machine has" in said["generate"]


def headed(header: Any, n_bytes: int = 8, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * n_bytes


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "endless": headed({}, length=2**63), "beyond the file": headed({}, length=10**6), "empty": b"", "short": b"\0\0",
    "none": headed({"a": TENSOR}, length=0), "large": struct.pack("<Q", 10**8) + b" " * 100, "list": headed([1]),
    "shape": headed({"a": TENSOR | {"shape": [2**62, 2**62]}}), "dtype": headed({"a": TENSOR | {"dtype": "OBJECT"}}),
    "offsets": headed({"a": TENSOR | {"data_offsets": [8, 0]}}),
    "outside": headed({"a": TENSOR | {"data_offsets": [0, 10**12]}}),
    "over another": headed({"a": TENSOR, "b": TENSOR}), "negative": headed({"a": TENSOR | {"shape": [-2]}}),
    "deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "half": headed({"a": TENSOR | {"dtype": "F16", "shape": [4]}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_a_header_that_lies_is_one_sentence(folder: Path, kind: str, name: str) -> None:
    shutil.rmtree(folder / "checkpoints" / "step-000001")
    (folder / CHECKPOINT / f"{name}.safetensors").write_bytes(HEADERS[kind])
    sealed(folder)
    use = "generate" if name == "model" else "resume"
    assert f"{name}.safetensors" in refusals(use)[use]


@pytest.mark.parametrize(("number", "name"), [(math.nan, "model"), (math.inf, "model"), (math.nan, "optimizer")])
def test_numbers_that_are_none_are_named(folder: Path, number: float, name: str) -> None:
    shutil.rmtree(folder / "checkpoints" / "step-000001")
    file = folder / CHECKPOINT / f"{name}.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.startswith("h.0.mlp.c_fc"))
    tensors[key].view(-1)[-1] = number
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, file)
    sealed(folder)
    assert f"{name}.safetensors contains NaN or infinity, in {key}" in refusals("resume")["resume"]


@pytest.mark.parametrize(
    "value",
    ["..", "../../outside", "/", "step-000002/../../..", "step-000002\0", "C:\\evil", "\\\\host\\share", "nul", "",
     "step-²", "step-99999999999999999999999", None, 5, ["step-000002"], "step-000009"],
)  # fmt: skip
def test_a_pointer_leads_to_a_checkpoint_or_nowhere(folder: Path, value: Any) -> None:
    outside = folder.parents[1] / "outside"
    shutil.copytree(folder / CHECKPOINT, outside)
    for name in ("best", "last"):
        storage.write_checksummed(folder / "checkpoints" / f"{name}.json", {"checkpoint": value})
    assert groundling.load("run").checkpoints.pointed("best") is None
    assert groundling.load("run").checkpoint == folder / CHECKPOINT  # the newest


def test_a_name_of_a_checkpoint_that_is_no_number_is_left_out(folder: Path) -> None:
    for name in ("step-²", "step-1", "step--00002", "step-" + "9" * 100):
        (folder / "checkpoints" / name).mkdir()
    assert groundling.load("run").checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\\b", "a\0b", "nul", "CON", "com1.txt", "a" * 101, "a."])
def test_names_that_are_none_are_refused(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ValueError, match="is not a valid name"):
        groundling.train(__file__, preset="nano", steps=1, name=name, on_event=lambda _: None)
    if name not in ("", ".", ".."):
        with pytest.raises(FileNotFoundError, match="No run "):
            groundling.load(name)


@pytest.mark.parametrize("place", ["", CHECKPOINT])
def test_another_tokenizer_of_the_same_size_is_refused(folder: Path, place: str) -> None:
    def swap(value: dict[str, Any]) -> None:
        value["characters"] = "".join(sorted(set(value["characters"]) - {"e"} | {"☃"}))

    change(folder / place / "tokenizer.json", swap)
    sealed(folder)
    use = "checkpoint" if place else "generate"
    said = refusals(use)[use]
    assert "tokenizer.json is not the tokenizer that run was trained with: its hash differs" in said


def both(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    for place in (folder, folder / CHECKPOINT):
        change(place / "config.json", edit)
    sealed(folder)


def test_a_newer_format_says_what_to_do(folder: Path) -> None:
    both(folder, lambda record: (record.update(format=2, novelty=1), record["versions"].update(groundling="9.1.0")))
    said = refusals()
    assert "was written by groundling 9.1.0, and this is" in said["generate"]
    assert said["generate"].endswith(". Update groundling to read it.")
    assert set(said) == set(uses()) - {"runs", "plot"}


@pytest.mark.parametrize("places", [[""], ["", CHECKPOINT]], ids=["run", "run and checkpoint"])
def test_a_record_of_a_newer_version_is_not_called_damaged(folder: Path, places: list[str]) -> None:
    for place in places:
        change(folder / place / "config.json", lambda record: record.update(format=2))
    sealed(folder)
    before, said = (folder / "config.json").read_bytes(), list[Event]()
    with pytest.raises(ValueError, match=r"config\.json was written by .* Update groundling to read it\."):
        groundling.resume("run", steps=3, on_event=said.append)
    assert not said
    assert (folder / "config.json").read_bytes() == before


def test_what_is_no_better_in_the_checkpoint_is_not_put_back(folder: Path) -> None:
    said = list[Event]()
    both(folder, lambda record: record["settings"]["model"].update(n_experts=8))
    with pytest.raises(ValueError, match="There is no setting 'n_experts'"):
        groundling.resume("run", steps=3, on_event=said.append)
    assert not said


def test_an_entry_that_nobody_knows_is_named(folder: Path) -> None:
    both(folder, lambda record: record["settings"]["model"].update(n_experts=8))
    assert "config.json is not valid: There is no setting 'n_experts'." in refusals("generate")["generate"]
    both(folder, lambda record: record["settings"]["model"].pop("n_experts"))
    both(folder, lambda record: (record.update(tracks=[]), record["versions"].update(groundling="9.1.0")))
    told = (
        "this version knows no entry 'tracks' (did you mean 'track'?). It was written by groundling 9.1.0, and this is"
    )
    assert told in refusals("generate")["generate"]


ESCAPES = "\x1b]0;evil\x07\x1b[2J\x9b31m\u202eabc"


def test_a_terminal_obeys_no_stranger(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both(folder, lambda record: record["corpus"].update(name=ESCAPES))
    both(folder, lambda record: record["settings"].update(preset=ESCAPES))

    def said(*command: str) -> str:
        with pytest.raises(SystemExit):
            main(list(command))
        captured = capsys.readouterr()
        return captured.out + captured.err

    listed = said("runs")
    assert "␛]0;evil␇␛[2J" in listed
    both(folder, lambda record: record["settings"]["model"].update({ESCAPES: 1}))
    for output in (listed, said("runs", "--json"), said("sample", "run"), said("explain", "run")):
        assert not any(character in output for character in "\x1b\x07\x9b\u202e")


def test_a_config_of_the_first_format_is_still_read(folder: Path) -> None:
    """A new setting needs `legacy_default=`, what runs did without it: every config.json ever written must load."""
    from groundling.run.record import RunRecord

    first = json.loads((Path(__file__).parent / "run" / "config-format-1.json").read_text("utf-8"))
    assert RunRecord.read(first, "config.json").settings.model.n_layer == 1


def test_what_came_later_has_its_value_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from groundling.config import Config, config

    fields = config.ModelSettings.__dataclass_fields__
    older = {**fields["dropout"].metadata, "legacy_default": 0.25}
    monkeypatch.setattr(fields["dropout"], "metadata", older)
    values = Config.build("x").to_dict()
    del values["model"]["dropout"]
    assert Config.from_dict(values).model == dataclasses.replace(Config.build("x").model, dropout=0.25)


def test_a_small_file_that_unpacks_to_a_disk_full_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.gz").write_bytes(220 * gzip.compress(b"a" * 2**20))
    document = find_source(tmp_path / "bomb.gz").files[0]
    with pytest.raises(OSError, match="grows to more than 200 times its size"):
        for _ in read_bytes(document):
            pass


def test_a_page_of_a_hostile_run_is_inert(folder: Path) -> None:
    evil = "</script><script>window.evil = 1</script><img src=x onerror='evil=1'>"
    both(folder, lambda record: record["corpus"].update(name=evil))
    both(folder, lambda record: record["settings"].update(preset=evil, corpus=evil))
    both(folder, lambda record: (record["machine"].update(reasons=[evil]), record["versions"].update({evil: evil})))
    for name, keys in (("samples.jsonl", ("text", "prompt")), ("metrics.jsonl", ("run", "sentence", "verdict"))):
        lines = [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        lines.append({"event": "notice", "sentence": evil})
        changed = [{key: evil if key in keys else value for key, value in line.items()} for line in lines]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in changed), encoding="utf-8")
    page = groundling.load("run").report(originality=False).read_text("utf-8")
    assert "evil" in page
    assert page.count("<script") == 2  # its own, and its data
    assert "<img" not in page
