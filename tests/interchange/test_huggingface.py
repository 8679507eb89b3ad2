"""Hugging Face exports, opened in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import groundling
from groundling.interchange import export as exporting
from groundling.interchange import huggingface
from groundling.interchange.parity import Mismatch
from groundling.run.run import Run


@pytest.mark.parametrize("name", ["characters", "pieces"])
def test_transformers_computes_and_writes_the_same(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run: Run = request.getfixturevalue(name)
    made = groundling.export(run, to="huggingface", out=tmp_path / "export")
    assert made["proof"]["engine"].startswith("transformers")
    assert 0 < made["proof"]["largest_difference"] < 1e-4
    assert made["proof"]["source"] == "the validation text"
    # Once more, by hand.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    text = "  It's 12345 times — not\n\n\tonce…  “Ok”. "
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == run.tokenizer.encode(text, "skip")
    prompt = torch.tensor([ids[:12]])
    written = model.generate(prompt, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
    assert tokenizer.decode(written[0, 12:]) == run.generate(run.tokenizer.decode(ids[:12]), max_new_tokens=12, top_k=1)


def test_the_card_tells_how_it_was_trained_and_what_was_compared(characters: Run, tmp_path: Path) -> None:
    made = groundling.export(characters, to="huggingface", quantize="bf16", out=tmp_path / "export")
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    loss = min(line["validation_loss"] for line in characters.metrics() if line["event"] == "evaluation")
    assert f"| validation loss | {loss:.4f} nats per token |" in card
    assert characters.record.corpus.fingerprint in card
    assert f"at most {made['proof']['largest_difference']:.2g} (weights are quantized)" in card
    assert '"learning_rate": 0.003' in card
    assert load_file(tmp_path / "export" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_what_computes_something_else_is_not_published(
    characters: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = huggingface.write

    def wrong(folder: Path, *arguments: object) -> None:
        write(folder, *arguments)  # type: ignore[arg-type]
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][0] += 0.5
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(exporting.huggingface, "write", wrong)
    with pytest.raises(Mismatch, match=r"does not compute the same: its logits differ by .* Nothing was exported"):
        groundling.export(characters, to="huggingface", out=tmp_path / "export")
    assert not list(tmp_path.glob("*export*"))


def test_a_tokenizer_that_gives_other_ids_is_not_published(
    characters: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = characters.tokenizer.to_huggingface()
    vocabulary = definition["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    monkeypatch.setattr(type(characters.tokenizer), "to_huggingface", lambda self: definition)
    with pytest.raises(Mismatch, match="its tokenizer gives other ids from token"):
        groundling.export(characters, to="huggingface", out=tmp_path / "export")
    assert not list(tmp_path.glob("*export*"))
