"""Import a model in Hugging Face format as a run that you can sample, evaluate and train further."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from groundling import __version__, storage
from groundling.config import PRESETS, Config
from groundling.data.progress import Notice, silent
from groundling.data.tokenizers.base import END_OF_TEXT, ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.interchange.huggingface import ARCHITECTURES, NAMES, transposed
from groundling.interchange.weight_names import Family, from_external
from groundling.machine import choose, versions
from groundling.model.gpt import GPT
from groundling.model.weights_file import check_memory
from groundling.run.folder import as_name, is_name, runs_folder
from groundling.run.lock import lock
from groundling.run.record import FORMAT, CorpusFacts, MachineFacts, RunRecord
from groundling.run.run import Run
from groundling.training.checkpoints import Snapshot
from groundling.training.state import TrainState

_LONGEST = 2048  # default limit of the context: generating with Qwen3's 40,960 tokens would need gigabytes

# Settings that our model supports with these values only. The first is the default if config.json has no such entry.
_FIXED: dict[Family, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
    },
    "qwen3": {
        "hidden_act": ("silu",), "rms_norm_eps": (1e-6,), "attention_bias": (False,), "use_sliding_window": (False,),
        "rope_scaling": (None,),
    },
}  # fmt: skip


def import_model(
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    block_size: int | None = None,
    out: str | os.PathLike[str] | None = None,
    notice: Notice = silent,
) -> Run:
    """Import a GPT-2 or Qwen3 from a local folder with config.json, safetensors (one file or several) and a tokenizer
    (tokenizer.json, or vocab.json and merges.txt). Returns a run.

    Args:
        name: the run's name. Default: the folder's name.
        block_size: the context length. Default: the model's own, at most 2,048.
        out: folder for runs. Default: `$GROUNDLING_RUNS`, or `./runs`.

    Raises ValueError or OSError, with the reason, if the model cannot be imported.
    """
    source = Path(folder).expanduser()
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"{source} contains no config.json. Give the folder of a model in Hugging Face format.")
    theirs = storage.read_json(source / "config.json")
    try:
        family, model = _settings(theirs, source, block_size)
        rows = int(theirs["vocab_size"])
    except KeyError as error:
        raise ValueError(f"{source / 'config.json'} has no entry {error}.") from None
    except (TypeError, AttributeError, OverflowError) as error:  # an entry of another type
        raise ValueError(f"{source / 'config.json'} does not describe a model: {error}.") from None
    tokenizer = _own_tokenizer(Tokenizer.load(source))
    if tokenizer.vocab_size > rows:
        raise ValueError(f"{source}: the tokenizer has {tokenizer.vocab_size:,} tokens, but the model only {rows:,}.")
    if tokenizer.vocab_size < rows:
        notice(f"Dropped {rows - tokenizer.vocab_size:,} vocabulary rows that no token uses.")
    name = name or as_name(source.resolve().name, "imported")
    if not is_name(name):
        raise ValueError(f"--name {name!r} is not a valid folder name. Use letters, digits, '.', '_' and '-'.")
    tensors = _trim(transposed(_read(source, family), family), family, model, tokenizer.vocab_size)
    return _new_run(
        runs_folder(out).resolve() / name, model, family, tokenizer, tensors,
        {"name": source.resolve().name, "architecture": ARCHITECTURES[family]},
    )  # fmt: skip


def _settings(theirs: Any, source: Path, block_size: int | None) -> tuple[Family, dict[str, Any]]:
    """The family, and the model's settings under our names."""
    kinds = theirs.get("architectures") or [theirs.get("model_type")]
    family = next((ours for ours, name in ARCHITECTURES.items() if name in kinds or ours in kinds), None)
    if family is None:
        raise ValueError(
            f"{source} contains a {', '.join(map(str, kinds))}. Only {' and '.join(ARCHITECTURES.values())} can be "
            "imported."
        )
    rope = theirs.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        theirs = theirs | {"rope_scaling": rope["rope_type"]}
    for name, allowed in _FIXED[family].items():
        if (value := theirs.get(name, allowed[0])) not in allowed:
            raise ValueError(
                f"{source}: groundling does not support {name} {json.dumps(value)}, only {json.dumps(allowed[0])}."
            )
    if any(kind != "full_attention" for kind in theirs.get("layer_types") or []):
        raise ValueError(f"{source}: some layers do not attend to the full context. groundling does not support that.")
    model = _gpt2(theirs) if family == "gpt2" else _qwen3(theirs, rope)
    own = model["block_size"]
    model["block_size"] = block_size or min(own, _LONGEST)
    if model["block_size"] > own:
        raise ValueError(f"--block-size {block_size} is too large: this model's context has at most {own:,} tokens.")
    return family, model


def _gpt2(theirs: dict[str, Any]) -> dict[str, Any]:
    return {
        "block_size": theirs["n_positions"], "n_layer": theirs["n_layer"], "n_head": theirs["n_head"],
        "n_embd": theirs["n_embd"], "mlp_size": theirs.get("n_inner") or 0,
        "dropout": theirs.get("resid_pdrop", 0.1), "tie_head": theirs.get("tie_word_embeddings", True),
    }  # fmt: skip


def _qwen3(theirs: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    return {
        "block_size": theirs["max_position_embeddings"], "n_layer": theirs["num_hidden_layers"],
        "n_head": theirs["num_attention_heads"], "n_kv_head": theirs["num_key_value_heads"],
        "n_embd": theirs["hidden_size"], "head_size": theirs.get("head_dim") or 128,
        "mlp_size": theirs["intermediate_size"], "norm": "rmsnorm", "position": "rope", "mlp": "swiglu",
        "rope_theta": float(rope.get("rope_theta") or theirs.get("rope_theta") or 10_000.0), "dropout": 0.0,
        "tie_head": theirs.get("tie_word_embeddings", False),
    }  # fmt: skip


def _own_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Our own character, byte or BPE tokenizer if `tokenizer` is exactly that. All of ours can be exported to GGUF."""
    definition = tokenizer.to_huggingface()
    vocabulary, merges = (definition["model"].get(key) for key in ("vocab", "merges"))
    if not isinstance(vocabulary, dict) or merges is None:
        return tokenizer
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    makers: tuple[Callable[[], Tokenizer], ...] = (
        lambda: CharTokenizer([token for token in tokens if token != END_OF_TEXT], END_OF_TEXT in vocabulary),
        ByteTokenizer,
        lambda: BpeTokenizer(tokens, merges),
    )
    for make in makers:
        with suppress(ValueError):
            if (own := make()).to_huggingface() == definition:
                return own
    return tokenizer


def _read(source: Path, family: Family) -> dict[str, torch.Tensor]:
    """All tensors from model.safetensors, or from the files that its index lists."""
    index = source / "model.safetensors.index.json"
    files = [source / "model.safetensors"]
    if index.is_file():
        try:
            files = sorted({source / Path(name).name for name in storage.read_json(index)["weight_map"].values()})
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is damaged: it does not list the files of the weights.") from None
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist. Weights can only be imported from safetensors files.")
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}.") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{source}: the weights {name} contain NaN or infinity. Download the model again.")
    if family == "gpt2":
        # OpenAI's own files omit "transformer.", and store attention masks among the weights.
        tensors = {
            name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
            for name, tensor in tensors.items()
            if not name.endswith((".attn.bias", ".attn.masked_bias"))
        }
    return tensors


def _trim(
    tensors: dict[str, torch.Tensor], family: Family, model: dict[str, Any], vocab_size: int
) -> dict[str, torch.Tensor]:
    """Drop positions beyond the context, vocabulary rows that no token uses, and a tied head's own tensor."""
    rows = {"wte": vocab_size, "lm_head": vocab_size, "wpe": model["block_size"]}
    rows = {f"{NAMES[family].get(ours, ours)}.weight": n for ours, n in rows.items()}
    return {
        name: tensor[: rows[name]] if name in rows and tensor.dim() else tensor
        for name, tensor in tensors.items()
        if not (model["tie_head"] and name == "lm_head.weight")
    }


def _new_run(
    folder: Path, model: dict[str, Any], family: Family, tokenizer: Tokenizer, tensors: dict[str, torch.Tensor],
    imported: dict[str, str],
) -> Run:  # fmt: skip
    """A run with one checkpoint, at step 0."""
    # Training further starts at a tenth of this learning rate. nanoGPT finetunes GPT-2 with 3e-5.
    training: dict[str, Any] = {"optimizer": "adamw", "learning_rate": PRESETS["gpt2"].training.learning_rate}
    config = Config.build("", "gpt2", **model, **training, tokenizer=str(folder / "tokenizer.json"))
    check_memory(config.model, tokenizer.vocab_size)
    filled = GPT(config.model, tokenizer.vocab_size)
    with torch.no_grad():
        from_external(filled, NAMES[family], tensors)
    run = Run(folder)
    exists = FileExistsError(f"Run {run.reference} already exists. Use another --name.")
    if folder.exists() and run.checkpoints.steps():
        raise exists
    with ExitStack() as stack:
        storage.make_folder(folder)  # if it exists without a checkpoint, an import was interrupted: start over
        lock(folder, stack)
        if run.exists and not run.record.imported:
            raise exists
        tokenizer.save(folder / "tokenizer.json")
        record = RunRecord(
            format=FORMAT, created=datetime.now(UTC).isoformat(timespec="seconds"), requested=config, settings=config,
            corpus=CorpusFacts(
                name=imported["name"], fingerprint="", documents=2, characters=0, vocab_size=tokenizer.vocab_size,
                tokenizer=tokenizer.fingerprint,
            ),
            machine=MachineFacts(**choose(config.machine).describe()),
            versions=versions() | {"groundling": __version__}, imported=imported,
        )  # fmt: skip
        run.create(record)
        run.checkpoints.save(Snapshot(TrainState(), filled.state_dict(), {}), 0)
    return run
