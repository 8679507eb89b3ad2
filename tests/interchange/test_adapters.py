"""Adapters of whole runs: exported to PEFT's format, and imported from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import logits_of

import groundling
from groundling import storage
from groundling.cli.app import app
from groundling.interchange import export as exporting
from groundling.run.run import Run


@pytest.fixture(scope="module")
def tuned(characters: Run, pieces: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A Qwen3 tuned with DoRA, and a GPT-2 with its own head tuned with rsLoRA, for a few steps."""
    folder = tmp_path_factory.mktemp("tuned")
    turns = [[("user", f"Say {n}."), ("assistant", f"It is {n}.")] for n in range(40)]
    chats = [{"messages": [{"role": role, "content": text} for role, text in each]} for each in turns]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)), encoding="utf-8")
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        for kind, parent in (("dora", characters), ("rslora", pieces)):
            runs[kind] = groundling.sft(
                parent, folder / "chats.jsonl", name=kind, out=folder, adapter=2, adapter_kind=kind, steps=5,
                learning_rate=3e-2, batch_size=4, device="cpu", dtype="float32", on_event=lambda _: None,
            )  # fmt: skip
    return runs


@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_peft_computes_the_same_with_an_exported_adapter(kind: str, tuned: dict[str, Run], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    run = tuned[kind]
    made = groundling.export(run, to="peft", out=tmp_path / "export")
    assert made["proof"]["engine"] == f"PEFT {peft.__version__}"
    assert made["proof"]["largest_difference"] < 1e-5
    assert {"adapter_config.json", "adapter_model.safetensors", "base/model.safetensors"} <= made["files"].keys()
    for folder in (tmp_path / "export", tmp_path / "export" / "base"):
        storage.verify(folder)
    tokens = torch.randint(run.tokenizer.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "export" / "base").eval()
    before = base(tokens).logits
    model = peft.PeftModel.from_pretrained(base, tmp_path / "export").eval()
    torch.testing.assert_close(model(tokens).logits, logits_of(run, tokens), atol=1e-5, rtol=1e-5)
    assert (before - logits_of(run, tokens)).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_an_exported_adapter_comes_back(kind: str, tuned: dict[str, Run], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run = tuned[kind]
    groundling.export(run, to="peft", out=tmp_path / "export")
    base = groundling.import_model(tmp_path / "export" / "base", name="base", out=tmp_path)
    app(["import", str(tmp_path / "export"), "--base", str(base.folder), "--out", str(tmp_path), "--name", "back"],
        result_action="return_value")  # fmt: skip
    back = Run(tmp_path / "back")
    tokens = torch.randint(run.tokenizer.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits_of(back, tokens), logits_of(run, tokens), atol=1e-5, rtol=1e-5)
    assert back.record.imported is not None and back.record.imported["name"] == "export, an adapter of base"
    assert not torch.equal(logits_of(base, tokens), logits_of(back, tokens))


def test_without_peft_an_export_says_that_it_is_unproved(
    tuned: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "peft", None)
    made: dict[str, Any] = groundling.export(tuned["dora"], to="peft", out=tmp_path / "export")
    assert made["proof"] is None
    assert made["sentences"][0].startswith("PEFT is not installed, so this export was not compared")
    assert made["sentences"][0] in (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "export" / "adapter_model.safetensors").exists()


def test_what_has_no_adapter_or_no_base_says_so(characters: Run, tuned: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Run tiny has no adapter: all its weights were trained"):
        groundling.export(characters, to="peft", out=tmp_path / "export")
    with pytest.raises(ValueError, match="--average 2 does not work with --to peft"):
        groundling.export(tuned["dora"], to="peft", average=2, out=tmp_path / "export")
    with pytest.raises(ValueError, match=r"--quantize f16 does not work with --to peft\. Omit it"):
        groundling.export(tuned["dora"], to="peft", quantize="f16", out=tmp_path / "export")
    with pytest.raises(ValueError, match="--block-size does not work with --base"):
        groundling.import_model(tmp_path, base=characters, block_size=16)
    with pytest.raises(FileNotFoundError, match=r"contains no adapter_config\.json"):
        groundling.import_model(tmp_path, base=characters)
