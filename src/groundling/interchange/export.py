"""Export a run's model to another engine's format. It is published only if that engine computes the same."""

from __future__ import annotations

import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from groundling import storage
from groundling.config import Limits, user_path
from groundling.data.corpus import Corpus
from groundling.data.mixture import Mixture, parts_of
from groundling.data.progress import Notice, silent
from groundling.data.tokens import Tokens
from groundling.evaluation.score import score
from groundling.interchange import gguf, huggingface, onnx, peft
from groundling.interchange.model_card import UNPROVED, card
from groundling.interchange.parity import ExternalEngine, check_parity, parity_inputs
from groundling.interchange.weight_names import family_of
from groundling.model.adapter import Adapter
from groundling.model.gpt import GPT
from groundling.model.weights_file import load_weights
from groundling.run.run import Run
from groundling.run.session import adapter_spec
from groundling.run.store import load
from groundling.training.learner import ADAPTER
from groundling.training.state import read_state

Target = Literal["huggingface", "gguf", "onnx", "peft"]
_MODULES = {"huggingface": huggingface, "gguf": gguf, "onnx": onnx, "peft": peft}


def export(
    run: str | os.PathLike[str] | Run,
    *,
    to: Target,
    out: str | os.PathLike[str] | None = None,
    quantize: str | None = None,
    average: int = 1,
    notice: Notice = silent,
) -> dict[str, Any]:
    """Export a run's model, open it in the other engine, and check that this computes the same (see parity.py).

    Args:
        run: a run (its best checkpoint is used), or a checkpoint.
        to: `huggingface` (transformers), `gguf` (llama.cpp, Ollama), `onnx` (ONNX Runtime), or `peft`: the adapter of a
            run that was tuned with one, and in the folder `base` the model that it belongs to.
        out: the folder to create. Default: `exports/` and the format's name in the run's folder.
        quantize: weights in fewer bits: f16 or bf16 for huggingface; f16, q8_0, q5_0 or q4_0 for gguf; int8 for onnx.
        average: export the average of the weights of this many newest checkpoints instead of one checkpoint.

    Returns a dict ready for JSON: `folder`, `files` (bytes of each), `step`, the parity report as `proof` and in words
    as `sentences`, and if averaged, `average`: the validation losses of the average and of the best checkpoint.

    Raises ValueError if the engine computes something else or does not support this model. Nothing is left on disk.
    """
    if to not in _MODULES:
        raise ValueError(f"--to {to} is unknown. Use one of {', '.join(_MODULES)}.")
    if quantize is not None and quantize not in (allowed := _MODULES[to].QUANTIZATIONS):
        instead = f"Use {' or '.join(allowed)}." if allowed else "Omit it."
        raise ValueError(f"--quantize {quantize} does not work with --to {to}. {instead}")
    Limits(1).check("--average", average)
    if to == "peft" and average > 1:
        raise ValueError(f"--average {average} does not work with --to peft: averaged factors are no average. Omit it.")
    run = run if isinstance(run, Run) else load(run)
    run.check_writes()
    family_of(run.config.model)
    own = run.folder / "exports" / (f"{to}-{quantize}" if quantize else to)
    folder = own if out is None else user_path("--out", out)
    if folder.exists():
        raise FileExistsError(f"{folder} already exists. Choose another folder with --out, or delete this one.")
    storage.check_writable(folder.parent, "--out", notice)
    try:
        data = run.text.open()
        text = parts_of(data)[0].corpus if isinstance(data, Corpus | Mixture) else None  # any text of a mix will do
        validation = text.validation if text else None  # windows of random tokens, for examples
    except ValueError as error:
        notice(f"{error} Comparing on random tokens instead.")
        validation = None
    model, averaged = _model(run, average, validation)
    facts = {
        "run": run.name, "step": run.step, "parameters": sum(p.numel() for p in model.parameters()),
        **({"average": averaged} if averaged else {}),
    }  # fmt: skip
    storage.remove_temporary(folder.parent, folder.name)
    with storage.new_folder(folder, facts) as temporary:
        notice(f"Exporting to {to}.")
        engine = _write(to, temporary, model, run, quantize)
        report = None
        if engine is not None:
            notice(f"Comparing with {engine.name}.")
            inputs = parity_inputs(model, run.tokenizer, validation)
            report = check_parity(model, run.tokenizer, engine, inputs, rounded=quantize is not None)
        del engine  # Windows cannot rename a folder with an open file
        storage.write_file(temporary / "README.md", card(run, model, to, quantize, averaged, report))
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return {
        "folder": str(folder), "to": to, "quantize": quantize, **facts, "files": files,
        "proof": report and dataclasses.asdict(report), "sentences": report.sentences if report else [UNPROVED],
    }  # fmt: skip


def _write(to: Target, folder: Path, model: GPT, run: Run, quantize: str | None) -> ExternalEngine | None:
    """Write the export, and open it in its engine. None if that is not installed, and the export works without."""
    imported = (run.record.imported or {}).get("architecture")
    if to == "huggingface":
        huggingface.write(folder, model, run.tokenizer, quantize, imported)
        return huggingface.Transformers(folder)
    if to == "peft":
        base, adapter = _adapter(run)
        with storage.new_folder(folder / peft.BASE) as place:
            huggingface.write(place, base, run.tokenizer, None, imported)
        peft.write(folder, adapter, family_of(base.config, imported))
        return peft.Peft(folder) if find_spec("peft") and find_spec("transformers") else None
    _MODULES[to].write(folder, model, run.tokenizer, quantize)
    return gguf.engine(folder, model, run.tokenizer) if to == "gguf" else onnx.OnnxRuntime(folder)


def _adapter(run: Run) -> tuple[GPT, Adapter]:
    """The initial model of a run that trained an adapter, and that adapter."""
    spec = adapter_spec(run, run.tokenizer.vocab_size)
    if spec is None:
        raise ValueError(f"Run {run.name} has no adapter: all its weights were trained. Use --to huggingface.")
    storage.verify(run.folder / "initial")
    base = GPT(run.config.model, run.tokenizer.vocab_size).eval()
    load_weights(run.folder / "initial", base)
    adapter = Adapter(base, spec, seed=0)
    file = run.checkpoint / "optimizer.safetensors"
    with safe_open(file, "pt") as tensors:
        names = [name for name in list(tensors.keys()) if name.startswith(ADAPTER)]
        adapter.load_state_dict({name.removeprefix(ADAPTER): tensors.get_tensor(name) for name in names})
    return base, adapter


def _model(run: Run, average: int, validation: Tokens | None) -> tuple[GPT, dict[str, Any] | None]:
    """The model on the CPU. For an average also its steps and validation losses."""
    paths = [run.checkpoint]
    if average > 1:
        if run.record.imported:
            raise ValueError(
                f"An imported run has one checkpoint, so there is nothing to average. Omit --average {average}."
            )
        paths = [run.checkpoints.path(step) for step in run.checkpoints.steps()[-average:]]
        if len(paths) < average:
            raise ValueError(
                f"--average {average}: run {run.name} has only {len(paths)} checkpoint(s). Use a smaller --average. "
                "To keep more checkpoints, train with a larger --keep-checkpoints (0 keeps all)."
            )
        kinds = {(read_state(path).stage, Run(run.folder, path).record.corpus.fingerprint) for path in paths}
        if len(kinds) > 1:
            raise ValueError(
                f"--average {average}: the newest {average} checkpoints of run {run.name} are from different "
                "generations or texts, so averaging them makes no sense. Use a smaller --average."
            )
        if run.config.mix is not None:
            raise ValueError(f"--average compares losses on one text, and the run {run.name} mixes several. Omit it.")
        if validation is None:
            raise ValueError("--average needs the run's text, to measure if the average is better.")
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
