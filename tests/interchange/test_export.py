"""What all exports share: options, averaged checkpoints, the command."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import logits_of, text_of, trained

import groundling
from groundling.__main__ import main
from groundling.interchange import huggingface
from groundling.run.run import Run


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"to": "pytorch"}, "--to pytorch is unknown. Use one of huggingface, gguf, onnx, peft."),
        ({"to": "onnx", "quantize": "q8_0"}, "--quantize q8_0 does not work with --to onnx. Use int8."),
        ({"to": "gguf", "average": 0}, "--average must be at least 1, not 0."),
        ({"to": "gguf", "average": 9}, "--average 9: run tiny has only 2 checkpoint"),
    ],
)
def test_what_cannot_be_made_is_said(pieces: Run, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        groundling.export(pieces, **settings)


def test_a_folder_that_exists_is_left_alone(pieces: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="already exists"):
        groundling.export(pieces, to="gguf", out=tmp_path / "mine")


def test_a_mixture_of_the_families_is_refused(pieces: Run) -> None:
    mixed = Run(pieces.folder)
    model = dataclasses.replace(pieces.config.model, norm="rmsnorm")
    mixed.record = pieces.record.model_copy(update={"settings": dataclasses.replace(pieces.config, model=model)})
    with pytest.raises(ValueError, match="No other engine supports this mixture"):
        groundling.export(mixed, to="huggingface")


def test_the_mean_of_checkpoints(pieces: Run, tmp_path: Path) -> None:
    made = groundling.export(pieces, to="huggingface", average=2, out=tmp_path / "mean")
    assert made["average"]["steps"] == [4, 8]
    assert made["average"]["best_checkpoint_loss"] == pieces.evaluate()["loss"]
    assert made["average"]["validation_loss"] != made["average"]["best_checkpoint_loss"]
    mean = huggingface.Transformers(tmp_path / "mean")
    run = groundling.import_model(tmp_path / "mean", name="mean")
    window = [5, 9, 30, 2]
    assert abs(logits_of(run, [window])[0].numpy() - mean.logits(np.array(window))).max() < 1e-4
    text = text_of(pieces)
    assert run.evaluate(text)["loss"] != pieces.evaluate(text)["loss"]
    card = (tmp_path / "mean" / "README.md").read_text(encoding="utf-8")
    assert "average of the checkpoints at steps 4, 8" in card


def test_the_command(characters: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(characters.checkpoints.path(4)), "--to", "gguf", "--json", "--out", str(tmp_path / "made")]
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 0
    made = json.loads(capfd.readouterr().out)
    assert made["step"] == 4
    assert made["files"].keys() == {"Modelfile", "README.md", "manifest.json", "model.gguf"}
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 1
    assert "already exists. Choose another folder with --out" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("to", "package", "extra"),
    [("huggingface", "transformers", "export"), ("gguf", "gguf", "gguf"), ("onnx", "onnxscript", "onnx")],
)
def test_a_missing_package_is_asked_for(
    to: Any, package: str, extra: str, pieces: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'pip install "groundling\[{extra}\]"'):
        groundling.export(pieces, to=to, out=tmp_path / "export")
    assert not list(tmp_path.glob("*export*"))


def test_the_mean_is_of_one_model(tmp_path: Path, prose: str) -> None:
    """Checkpoints of two generations are models that have nothing in common."""
    run = trained(tmp_path, prose, generations=2, keep_checkpoints=0)
    with pytest.raises(ValueError, match=r"--average 3: .* are from different generations or texts"):
        groundling.export(run, to="huggingface", average=3, out=tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
