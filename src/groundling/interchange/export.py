"""A run's model in the format of another engine, published once that engine was seen to compute the same."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from groundling import storage
from groundling.data.corpus import Tokens
from groundling.evaluation.score import score
from groundling.interchange import gguf, huggingface, onnx
from groundling.interchange.model_card import card
from groundling.interchange.parity import ExternalEngine, check_parity, parity_inputs
from groundling.interchange.weight_names import family_of
from groundling.model.gpt import GPT
from groundling.model.weights_file import load_weights
from groundling.run.run import Run
from groundling.run.store import load
from groundling.training.state import read_state

Target = Literal["huggingface", "gguf", "onnx"]
ROUNDED: dict[str, tuple[str, ...]] = {
    "huggingface": tuple(huggingface.ROUNDED), "gguf": gguf.ROUNDED, "onnx": onnx.ROUNDED,
}  # fmt: skip


def export(
    run: str | os.PathLike[str] | Run,
    *,
    to: Target,
    out: str | os.PathLike[str] | None = None,
    quantize: str | None = None,
    average: int = 1,
    notice: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Write a run's model for another engine, let that engine read it, and compare: see proof.py.

    Args:
        run: a run (its best checkpoint is taken), or a checkpoint.
        to: `huggingface` (transformers), `gguf` (llama.cpp, Ollama) or `onnx` (ONNX Runtime).
        out: the folder to make; `exports/` and the format's name in the run's folder if None.
        quantize: weights in fewer bits: f16 or bf16 for huggingface; f16, q8_0, q5_0 or q4_0 for gguf; int8 for onnx.
        average: the mean of the weights of so many newest checkpoints, in place of one checkpoint's.

    Returns what was made, ready for JSON: `folder`, `files` (bytes of each), `step`, `proof` and its `sentences`, and
    with `average`, `average`: the validation losses of the mean and of the best checkpoint.

    Raises ValueError if the engine computes something else, or cannot compute this model; nothing is left then.
    """
    if to not in get_args(Target):
        raise ValueError(f"--to {to} is not known; there are {', '.join(get_args(Target))}.")
    if quantize is not None and quantize not in ROUNDED[to]:
        raise ValueError(f"--quantize {quantize} is not for {to}, which takes {' or '.join(ROUNDED[to])}.")
    run = run if isinstance(run, Run) else load(run)
    family_of(run.config.model)
    folder = Path(out) if out else run.folder / "exports" / "-".join([to, *([quantize] if quantize else [])])
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: delete it, or name another folder with --out.")
    validation = _validation(run, notice)
    model, averaged = _model(run, average, validation)
    facts = {
        "run": run.name, "step": run.step, "parameters": sum(p.numel() for p in model.parameters()),
        **({"average": averaged} if averaged else {}),
    }  # fmt: skip
    storage.remove_temporary(folder.parent, folder.name)
    with storage.new_folder(folder, facts) as temporary:
        notice(f"writing {to}")
        engine = _written(to, temporary, model, run, quantize)
        notice(f"comparing with {engine.name}")
        proof = check_parity(
            model, run.tokenizer, engine, parity_inputs(model, run.tokenizer, validation), rounded=quantize is not None
        )
        del engine  # Windows renames no folder with an open file
        storage.write_file(temporary / "README.md", card(run, model, to, quantize, averaged, proof))
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return {
        "folder": str(folder), "to": to, "quantize": quantize, **facts, "files": files,
        "proof": dataclasses.asdict(proof), "sentences": proof.sentences,
    }  # fmt: skip


def _written(to: Target, folder: Path, model: GPT, run: Run, quantize: str | None) -> ExternalEngine:
    if to == "huggingface":
        huggingface.write(folder, model, run.tokenizer, quantize)
        return huggingface.Transformers(folder)
    if to == "gguf":
        gguf.write(folder, model, run.tokenizer, quantize)
        return gguf.engine(folder, model, run.tokenizer)
    onnx.write(folder, model, run.tokenizer, quantize)
    return onnx.OnnxRuntime(folder)


def _validation(run: Run, notice: Callable[[str], None]) -> Tokens | None:
    try:
        return run.text.open().validation
    except ValueError as error:
        notice(f"{error} The proof is made with random tokens.")
        return None


def _model(run: Run, average: int, validation: Tokens | None) -> tuple[GPT, dict[str, Any] | None]:
    """The model on the CPU, and what is known of it if it is a mean: checkpoints and validation losses."""
    if average < 1:
        raise ValueError(f"--average must be 1 or more, and it is {average}.")
    paths = [run.checkpoint]
    if average > 1:
        paths = [run.checkpoints.path(step) for step in run.checkpoints.steps()[-average:]]
        if len(paths) < average:
            raise ValueError(
                f"--average {average}: the run {run.name} keeps {len(paths)} checkpoint(s); --keep-checkpoints says "
                "how many a training run leaves."
            )
        kinds = {(read_state(path).stage, Run(run.folder, path).record.corpus.fingerprint) for path in paths}
        if len(kinds) > 1:
            raise ValueError(
                f"--average {average}: the newest {average} checkpoints of the run {run.name} are of different "
                "generations or texts, and their mean would be no model. Use a smaller --average."
            )
        if validation is None:
            raise ValueError("--average needs the run's text, to measure whether the mean is any better.")
    mean: dict[str, torch.Tensor] = {}
    for path in paths:
        storage.verify(path)
        model = GPT(run.config.model, run.tokenizer.vocab_size).eval()
        load_weights(path, model)
        for name, tensor in model.state_dict().items():
            mean[name] = mean.get(name, 0) + tensor.double() / len(paths)
    model.load_state_dict(mean)
    if average == 1 or validation is None:
        return model, None
    tokens = run.config.training.eval_tokens
    loss = score(model.to(run.machine.device), validation, run.tokenizer, run.machine, max_tokens=tokens).loss
    losses = {"validation_loss": loss, "best_checkpoint_loss": run.evaluate()["loss"]}
    return model.cpu(), {"steps": [read_state(path).step for path in paths], **losses}
