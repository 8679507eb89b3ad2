"""Import of GPT-2 and Qwen3 models that transformers itself made with random weights."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from small import TINY_GPT2, TINY_QWEN3, logits_of, saved, text_of

import groundling
from groundling.__main__ import main
from groundling.data.tokenizers.base import CharTokenizer
from groundling.run.run import Run


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("GPT2", TINY_GPT2),
        ("GPT2", TINY_GPT2 | {"n_inner": 48, "tie_word_embeddings": False}),
        ("Qwen3", TINY_QWEN3),
        ("Qwen3", TINY_QWEN3 | {"tie_word_embeddings": False, "shard": "20KB"}),
    ],
)
def test_an_imported_model_computes_the_same(kind: str, settings: dict[str, Any], pieces: Run, tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs", pieces.tokenizer, kind, **settings)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1 or "shard" not in settings
    run = groundling.import_model(tmp_path / "theirs", name="mine")
    tokens = torch.randint(run.tokenizer.vocab_size, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    assert run.tokenizer == pieces.tokenizer
    assert groundling.load("mine").config.model.block_size == settings.get("n_positions", 64)


def test_a_context_can_be_shortened_and_unused_rows_are_left_out(pieces: Run, tmp_path: Path) -> None:
    sizes = TINY_GPT2 | {"vocab_size": pieces.tokenizer.vocab_size + 7}
    theirs = saved(tmp_path / "theirs", pieces.tokenizer, "GPT2", **sizes)
    notices: list[str] = []
    run = groundling.import_model(tmp_path / "theirs", name="mine", block_size=16, notice=notices.append)
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        there = theirs(tokens).logits[..., : pieces.tokenizer.vocab_size]
    torch.testing.assert_close(logits_of(run, tokens), there, atol=1e-4, rtol=1e-4)
    assert notices == [
        "Ignored its dropout of 0.1 on attention weights. groundling has no such dropout.",
        "Dropped 7 vocabulary rows that no token uses.",
    ]


def test_there_and_back_again(characters: Run, tmp_path: Path) -> None:
    groundling.export(characters, to="huggingface", out=tmp_path / "there")
    back = groundling.import_model(tmp_path / "there", name="back")
    tokens = torch.arange(32)[None]
    assert torch.equal(logits_of(back, tokens), logits_of(characters, tokens))
    assert isinstance(back.tokenizer, CharTokenizer)
    assert back.tokenizer == characters.tokenizer
    assert back.generate("The ", max_new_tokens=20, seed=1) == characters.generate("The ", max_new_tokens=20, seed=1)
    text = text_of(characters)
    assert back.evaluate(text)["loss"] == pytest.approx(characters.evaluate(text)["loss"], abs=1e-3)  # bfloat16, maybe
    assert groundling.runs()[0]["status"] == "imported"
    again = groundling.export(back, to="huggingface", out=tmp_path / "again")
    assert again["proof"]["source"] == "random tokens"


def test_an_imported_model_is_trained_further(
    characters: Run, text_file: Path, tmp_path: Path, tiny: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    groundling.export(characters, to="huggingface", out=tmp_path / "there")
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "there"), "--name", "base", "--json"])
    assert json.loads(capfd.readouterr().out)["architecture"] == "Qwen3ForCausalLM"
    (tmp_path / "mine.txt").write_text(characters.tokenizer.decode(range(12, 60)) * 60, encoding="utf-8")
    settings = {name: tiny[name] for name in ("device", "dtype", "sample_tokens")}
    run = groundling.train(
        "mine.txt", init_from="base", steps=6, eval_every=3, batch_size=8, eval_tokens=512, on_event=lambda _: None,
        **settings,
    )  # fmt: skip
    losses = [line["validation_loss"] for line in run.metrics() if line["event"] == "evaluation"]
    assert losses[0] == pytest.approx(groundling.load("base").evaluate("mine.txt")["loss"], abs=0.3)
    assert losses[-1] < losses[0]
    assert run.config.training.learning_rate == pytest.approx(6e-5)
    assert run.config.training.optimizer == "adamw"
    assert run.tokenizer == characters.tokenizer
    with pytest.raises(ValueError, match=r"You cannot set --n-layer and --tokenizer with --init-from"):
        groundling.train("mine.txt", init_from="base", n_layer=5, tokenizer="byte", steps=6)
    with pytest.raises(ValueError, match=r"was imported, without a text\. Give one with --text"):
        groundling.load("base").evaluate()
    with pytest.raises(ValueError, match="was imported"):
        groundling.resume("base", steps=5)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("Phi3", TINY_QWEN3 | {"pad_token_id": 0}, r"a Phi3ForCausalLM\. Only GPT2LMHeadModel, .* can be imported"),
        ("GPT2", TINY_GPT2 | {"activation_function": "relu"}, 'does not support activation_function "relu"'),
        ("GPT2", TINY_GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx true"),
        ("Qwen3", TINY_QWEN3 | {"logit_scale": 0.5}, r"logit_scale 0\.5, only 1"),
        ("Llama", TINY_QWEN3 | {"hidden_act": "gelu"}, 'hidden_act "gelu", only "silu"'),
        ("Llama", TINY_QWEN3 | {"quantization_config": {"quant_method": "gptq"}}, r"weights are quantized \(gptq\)"),
        ("Qwen3", TINY_QWEN3 | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
         'rope_scaling "dynamic", only "default" or "linear" or "yarn" or "llama3"'),
        ("Llama", TINY_QWEN3 | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
         r"partial_rotary_factor 0\.5"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused(
    kind: str, settings: dict[str, Any], reason: str, pieces: Run, tmp_path: Path
) -> None:
    saved(tmp_path / "theirs", pieces.tokenizer, kind, **settings)
    with pytest.raises(ValueError, match=reason):
        groundling.import_model(tmp_path / "theirs", name="mine")
    assert not Path("runs/mine").exists()


def test_what_is_missing_or_damaged_is_said(pieces: Run, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        groundling.import_model(folder)
    saved(folder, pieces.tokenizer, "GPT2", **TINY_GPT2)
    weights = folder / "model.safetensors"
    with pytest.raises(ValueError, match="--block-size 64 is too large: this model's context has 32 tokens"):
        groundling.import_model(folder, block_size=64)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(ValueError, match=r"Weights are missing: transformer\.h\.2\."):
        groundling.import_model(folder)
    (folder / "config.json").write_text(json.dumps(config | {"n_inner": 64}))
    with pytest.raises(ValueError, match=r"has shape .*, but the settings require"):
        groundling.import_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ValueError, match="cannot be read"):
        groundling.import_model(folder)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"is a placeholder of Git LFS, not the weights\. Run `git lfs pull`"):
        groundling.import_model(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist\. Give the folder of a model"):
        groundling.import_model(folder)
    assert not list(Path("runs").glob("*"))


@pytest.mark.slow
def test_gpt2_as_its_authors_published_it(pieces: Run, tmp_path: Path) -> None:
    """Names without "transformer.", attention masks among the weights, and vocab.json with merges.txt."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "gpt2"
    theirs = saved(folder, pieces.tokenizer, "GPT2", **TINY_GPT2)
    tensors = {n.removeprefix("transformer."): t for n, t in load_file(folder / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    definition = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(definition["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in definition["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    run = groundling.import_model(folder)
    assert run.name == "gpt2"
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        torch.testing.assert_close(logits_of(run, tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_config_that_only_names_its_type_is_enough(pieces: Run, tmp_path: Path) -> None:
    saved(tmp_path / "theirs", pieces.tokenizer, "GPT2", **TINY_GPT2)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    assert groundling.import_model(tmp_path / "theirs", name="mine").config.model.norm == "layernorm"


def test_weights_that_are_not_finite_are_refused(pieces: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(tmp_path / "theirs", pieces.tokenizer, "GPT2", **TINY_GPT2)
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    tensors["transformer.wte.weight"][3, 1] = torch.nan
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"transformer\.wte\.weight contain NaN or infinity"):
        groundling.import_model(tmp_path / "theirs", name="mine")
    assert not list(Path("runs").glob("*"))


def test_an_import_that_was_interrupted_can_be_repeated(
    pieces: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from groundling.training.checkpoints import Checkpoints

    saved(tmp_path / "theirs", pieces.tokenizer, "GPT2", **TINY_GPT2)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            groundling.import_model(tmp_path / "theirs", name="mine")
    run = groundling.import_model(tmp_path / "theirs", name="mine")
    assert run.generate("The ", max_new_tokens=3, seed=1)
    with pytest.raises(FileExistsError, match="already exists"):
        groundling.import_model(tmp_path / "theirs", name="mine")


@pytest.mark.parametrize(("kind", "settings"), [("GPT2", TINY_GPT2), ("Qwen3", TINY_QWEN3), ("Mistral", TINY_QWEN3)])
def test_an_entry_of_any_wrong_type_is_one_sentence(
    kind: str, settings: dict[str, Any], pieces: Run, tmp_path: Path
) -> None:
    saved(tmp_path / "theirs", pieces.tokenizer, kind, **settings)
    config = tmp_path / "theirs" / "config.json"
    whole = json.loads(config.read_text())
    for i, entry in enumerate(whole):
        for wrong in ("x", [1], {"rope_type": []}, -1, 0, 1e300, None, "absent"):
            changed = {key: value for key, value in whole.items() if key != entry or wrong != "absent"}
            config.write_text(json.dumps(changed | ({} if wrong == "absent" else {entry: wrong})))
            with suppress(ValueError):  # and nothing else; many entries decide nothing
                groundling.import_model(tmp_path / "theirs", name=f"mine-{i}", out=tmp_path / f"runs-{i}-{wrong}"[:99])
    config.write_text(json.dumps([whole]))
    with pytest.raises(ValueError, match="does not describe a model"):
        groundling.import_model(tmp_path / "theirs")


@pytest.mark.parametrize(("kind", "settings"), [("GPT2", TINY_GPT2), ("Qwen3", TINY_QWEN3)])
def test_weights_of_any_wrong_shape_are_one_sentence(
    kind: str, settings: dict[str, Any], pieces: Run, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    saved(tmp_path / "theirs", pieces.tokenizer, kind, **settings)
    file = tmp_path / "theirs" / "model.safetensors"
    whole = load_file(file)
    for name in [name for name in whole if ".1." not in name]:  # the other blocks have the same
        for shape in ((), (3,), (2, 3), (1, 2, 3), None):
            tensors = {n: t for n, t in whole.items() if n != name}
            save_file(tensors | ({} if shape is None else {name: torch.zeros(shape)}), file, {"format": "pt"})
            with pytest.raises(ValueError, match=name.replace(".weight", "")):
                groundling.import_model(tmp_path / "theirs", name="mine")
    assert not list(Path("runs").glob("*"))


def test_an_index_that_lists_no_files_is_said(pieces: Run, tmp_path: Path) -> None:
    saved(tmp_path / "theirs", pieces.tokenizer, "Qwen3", **TINY_QWEN3)
    for index in ([], {}, {"weight_map": []}, {"weight_map": {"a": 1}}):
        (tmp_path / "theirs" / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="does not list the files"):
            groundling.import_model(tmp_path / "theirs", name="mine")
