"""What the templates are filled with: numbers and pieces of code, and nothing that a stranger wrote into a file."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from groundling.config import ModelSettings, Sampling, TrainingSettings, flag
from groundling.data.corpus import Corpus
from groundling.escape import printable
from groundling.evaluation.score import windows_of
from groundling.run.folder import RunFolder
from groundling.run.run_text import RunText

MOST_COPIED = 1_000_000_000  # bytes of token ids; more stay where they are
_MODEL = (
    "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "head_size", "mlp_size", "norm", "norm_eps", "position",
    "qk_norm", "mlp", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling", "sliding_window", "sliding_layers",
    "dropout", "tie_head",
)  # fmt: skip
_TRAINING = (
    "init_from", "steps", "minutes", "batch_size", "accumulate", "recompute", "optimizer", "optimizer_bits",
    "learning_rate", "matrix_learning_rate", "schedule", "warmup_steps", "final_lr_fraction", "weight_decay",
    "weight_average", "generations", "beta1", "beta2", "grad_clip", "eval_every", "eval_tokens", "patience", "seed",
    "checkpoint_every", "keep_checkpoints", "sample_every", "sample_prompt", "sample_tokens", "log_every",
)  # fmt: skip
_DEVICES = {
    "cuda": '"cuda" if torch.cuda.is_available() else "cpu"',
    "mps": '"mps" if torch.backends.mps.is_available() else "cpu"',
    "cpu": '"cpu"',
}


class NotTrainable(ValueError):
    """The run gets no train.py, for the reason in the message."""


def check_model(settings: ModelSettings) -> None:
    """Raise ValueError if the templates lack a part of the model."""
    other = _other(settings, _MODEL)
    if settings.rope_scaling.startswith("yarn"):
        other = f"{flag('rope_scaling')} {settings.rope_scaling}"
    if other:
        raise ValueError(f"A model with {other} cannot be ejected: the plain files have no code for it.")


def _other(settings: ModelSettings | TrainingSettings, known: tuple[str, ...]) -> str:
    """The first setting that the templates do not know and that is not at its default."""
    for each in dataclasses.fields(settings):
        if each.name not in known and (value := getattr(settings, each.name)) != each.default:
            return f"{flag(each.name)} {value}"
    return ""


def model_facts(run: RunFolder) -> dict[str, Any]:
    """For model.py."""
    m = run.config.model
    parts, rope, sliding = (m.norm, m.position, m.mlp), m.position == "rope", 0 < m.sliding_window < m.block_size
    return {
        "name": printable(run.name), "step": run.step,
        "m": m, "vocab_size": run.tokenizer.vocab_size, "biases": m.biases,
        "gpt2": parts == ("layernorm", "learned", "gelu"), "llama": parts == ("rmsnorm", "rope", "swiglu"),
        "norm": "RMSNorm" if m.norm == "rmsnorm" else "LayerNorm", "rope": rope, "sliding": sliding,
        "args": ", cos, sin" * rope + ", mask" * sliding, "layers": "".join("FS"[window > 0] for window in m.windows),
        "swiglu": m.mlp == "swiglu", "grouped": m.kv_heads != m.n_head, "dropout": m.dropout > 0,
        "sampling": Sampling(seed=0),
    }  # fmt: skip


def open_corpus(run: RunFolder) -> Corpus:
    """The text of a run that was pretrained. Raises NotTrainable if there is none."""
    if run.record.imported:
        raise NotTrainable("the model was imported, without a text.")
    if run.config.task != "pretraining":
        raise NotTrainable(f"it trains on a text, and this run was tuned by {run.config.task}.")
    if other := _other(run.config.training, _TRAINING):
        raise NotTrainable(f"it has no {other}.")
    if run.config.training.init_from and not (run.folder / "initial").is_dir():
        raise NotTrainable("the run has no copy of the weights that it started from.")
    try:
        corpus = RunText(run.reference, run.folder, run.record.corpus, run.config, run.tokenizer).open()
    except ValueError as error:
        raise NotTrainable(str(error)) from None
    if not isinstance(corpus, Corpus):
        raise NotTrainable("it mixes several texts, and train.py reads one.")
    if corpus.train.ends and _size(corpus) > MOST_COPIED:
        raise NotTrainable("its token ids are in several files, too large to copy.")
    return corpus


def _size(corpus: Corpus) -> int:
    """Bytes of all token ids."""
    return sum(corpus.token_counts) * np.dtype(corpus.train.dtype).itemsize


def training_facts(run: RunFolder, corpus: Corpus, notes: list[str]) -> dict[str, Any]:
    """For train.py. Adds to `notes` what it does differently."""
    t, machine, train, validation = run.config.training, run.record.machine, corpus.train, corpus.validation
    steps, context = t.steps, run.config.model.block_size
    notes.append("train.py saves no checkpoints to resume from, and does not skip steps whose loss is a spike.")
    if t.minutes:
        steps = (run.result or {}).get("step", steps)
        notes.append(f"The run's learning rate followed the clock. In train.py it follows the steps, {steps:,}.")
    if run.config.model.dropout:
        notes.append("Dropout draws other random numbers than in the run, so the losses are similar, not the same.")
    if t.optimizer_bits == 8:
        notes.append("train.py keeps the optimizer's state in float32, and the run did in 8 bits.")
    if machine.dtype == "float16":
        notes.append("train.py computes in float32, and the run did in float16.")
    evaluated = len(windows_of(len(validation), context, t.eval_tokens))
    copied = _size(corpus) <= MOST_COPIED
    return {
        "trains": True, "t": t, "initial": bool(t.init_from), "generations": t.generations, "steps": steps,
        "warmup": round(t.warmup_steps / t.steps * steps), "muon": t.optimizer == "muon",
        "averaged": t.weight_average > 0, "device": _DEVICES[machine.device.partition(":")[0]],
        "bfloat16": machine.dtype == "bfloat16", "n_train": len(train), "dtype": train.dtype, "copied": copied,
        "tokens": 'FOLDER / "tokens.bin"' if copied else ascii(str(train.path)),
        "eval_windows": evaluated if evaluated < len(windows_of(len(validation), context, 0)) else 0,
    }  # fmt: skip
