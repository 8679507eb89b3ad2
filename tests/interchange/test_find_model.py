"""Where a model's files are: folders, files, Hugging Face's cache, ids; and what is said about files of other kinds."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from small import TINY_GPT2, logits_of, saved

import groundling
from groundling.data.tokenizers.base import ByteTokenizer
from groundling.interchange.find_model import find_model


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in a cache as `hf download` lays it out: the files are blobs, one of them in a store for all models."""
    saved(tmp_path / "plain", ByteTokenizer(), "GPT2", **TINY_GPT2)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    model = tmp_path / "hf" / "hub" / "models--some-org--my-model"
    for commit in ("old", "new"):
        (model / "snapshots" / commit).mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("new")
    (model / "blobs").mkdir()
    (model.parent / "blobs").mkdir()
    for i, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        shutil.copy(file, (model.parent if file.name == "model.safetensors" else model) / "blobs" / f"{i}")
        if file.name == "model.safetensors":
            (model / "blobs" / f"{i}").symlink_to(f"../../blobs/{i}")
        (model / "snapshots" / "new" / file.name).symlink_to(f"../../blobs/{i}")
    return model


def test_a_cache_is_recognised_at_any_level(cached: Path, tmp_path: Path) -> None:
    new = cached / "snapshots" / "new"
    (tmp_path / "my-link").symlink_to(new)
    for given in (
        tmp_path / "hf", cached.parent, cached, cached / "snapshots", cached / "blobs", new, tmp_path / "my-link",
        new / "config.json", new / "model.safetensors", "some-org/my-model",
    ):  # fmt: skip
        folder, name = find_model(given)
        assert (folder.resolve(), name) == (new, "my-model"), given
    run = groundling.import_model("some-org/my-model")
    assert run.name == "my-model"
    plain = groundling.import_model(tmp_path / "plain" / "model.safetensors", name="plain")
    tokens = torch.arange(8)[None]
    assert torch.equal(logits_of(run, tokens), logits_of(plain, tokens))


def test_without_a_main_branch_the_newest_snapshot_is_taken(cached: Path) -> None:
    (cached / "refs" / "main").unlink()
    (cached / "snapshots" / "old" / "config.json").write_text("{}")
    os.utime(cached / "snapshots" / "new", (0, 0))
    assert find_model(cached)[0].name == "old"


def test_links_out_of_a_cache_are_not_followed(cached: Path, tmp_path: Path) -> None:
    weights = cached / "snapshots" / "new" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "plain" / "model.safetensors")
    with pytest.raises(ValueError, match="is a link that leads out of its folder"):
        groundling.import_model("some-org/my-model")
    (cached / "refs" / "main").write_text("../../../../plain")
    with pytest.raises(ValueError, match="is a link that leads out of its folder"):
        groundling.import_model(cached)


def test_an_id_that_was_not_downloaded_is_said_with_the_command(cached: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"To download it there: hf download Qwen/Qwen3-0\.6B$"):
        groundling.import_model("Qwen/Qwen3-0.6B")
    (cached / "snapshots" / "new" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"download is incomplete\. Repeat it: hf download some-org/my-model$"):
        groundling.import_model("some-org/my-model")


def test_a_cache_of_several_models_lists_them(cached: Path) -> None:
    (cached.with_name("models--gpt2") / "snapshots").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds 2 models\. Give one of their names, such as gpt2, some-org/my-model"):
        groundling.import_model(cached.parent)
    with pytest.raises(FileNotFoundError, match=r"contains no files\. Download the model again: hf download gpt2"):
        groundling.import_model("gpt2")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            r"It is an adapter \(PEFT\)\. Import its model first, .*groundling import .*theirs --base RUN",
        ),
        (["model.Q8_0.gguf"], "groundling does not import GGUF"),
        (["model.onnx", "config.json"], "groundling does not import ONNX"),
        (["config.json", "tf_model.h5"], "groundling does not import TensorFlow"),
        (["params.json", "consolidated.safetensors"], "in its authors' own format"),
        (["consolidated.00.pth"], "Its weights are pickled"),
        (["model/config.json"], "Did you mean .*model"),
        ([], "Give the folder of a model in Hugging Face format"),
    ],
)
def test_other_kinds_are_named(names: list[str], sentence: str, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    saved(tmp_path / "plain", ByteTokenizer(), "GPT2", **TINY_GPT2)
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "plain" / "config.json", folder / name)
    shutil.copy(tmp_path / "plain" / "tokenizer.json", folder)
    with pytest.raises((FileNotFoundError, ValueError), match=sentence):
        groundling.import_model(folder)
    if len(names) == 1 and not names[0].endswith("json"):
        with pytest.raises(ValueError, match=f"{re.escape(names[0])} cannot be imported. {sentence}"):
            groundling.import_model(folder / names[0])


def test_the_command_that_replaces_pickled_weights_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = saved(tmp_path / "theirs", ByteTokenizer(), "GPT2", **TINY_GPT2)
    (tmp_path / "theirs" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="could run code, so groundling does not open them") as said:
        groundling.import_model(tmp_path / "theirs", name="mine")
    found = re.search(r'python -c "(.*)" (\S+) (\S+)$', str(said.value))
    assert found
    monkeypatch.setattr(sys, "argv", ["-c", found[2], found[3]])
    exec(found[1])
    run = groundling.import_model(tmp_path / "theirs-safetensors", name="mine")
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_shards_without_their_index_are_read(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs", ByteTokenizer(), "GPT2", shard="30KB", **TINY_GPT2)
    (tmp_path / "theirs" / "model.safetensors.index.json").unlink()
    assert not (tmp_path / "theirs" / "model.safetensors").exists()
    run = groundling.import_model(tmp_path / "theirs", name="mine")
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_an_imported_run_is_neither_imported_again_nor_averaged(tmp_path: Path) -> None:
    saved(tmp_path / "theirs", ByteTokenizer(), "GPT2", **TINY_GPT2)
    run = groundling.import_model(tmp_path / "theirs", name="mine", out=tmp_path / "runs")
    with pytest.raises(ValueError, match="An imported run has one checkpoint, so there is nothing to average"):
        groundling.export(run.folder, to="huggingface", average=3)
    for given in (run.folder, run.checkpoint, run.folder / "tokenizer.json", "mine"):
        with pytest.raises(ValueError, match=r"is a groundling run already\. Use it without .*: `groundling sample"):
            groundling.import_model(given, out=tmp_path / "runs")
