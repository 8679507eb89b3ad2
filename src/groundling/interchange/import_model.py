"""A model in Hugging Face's format -> a run: to sample, to evaluate, to train further."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from groundling import __version__, storage
from groundling.config import PRESETS, Config
from groundling.data.tokenizers.base import END_OF_TEXT, ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.interchange.huggingface import ARCHITECTURES, MODEL_TYPES, NAMES, turned
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

_LONGEST = 2048  # tokens of context, unless more are asked for: Qwen3's 40,960 would take gigabytes to write with

# What has to have one value for our model to compute the same; the first is the default where config.json is silent.
_FIXED: dict[Family, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "modern": {
        "hidden_act": ("silu",),
        "rms_norm_eps": (1e-6,),
        "attention_bias": (False,),
        "use_sliding_window": (False,),
        "rope_scaling": (None,),
    },
}


def import_model(
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    block_size: int | None = None,
    out: str | os.PathLike[str] | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> Run:
    """Make a run of a GPT-2 or Qwen3 in a local folder: config.json, safetensors (in one file or several) and a
    tokenizer (tokenizer.json, or vocab.json and merges.txt).

    Args:
        name: of the run; the folder's own name if None.
        block_size: the context; the model's own, at most 2,048, if None.
        out: the folder of runs; `GROUNDLING_RUNS`, or `runs` in the working directory, if None.

    Raises ValueError or OSError, with the reason, for what cannot be imported.
    """
    source = Path(folder).expanduser()
    if not (source / "config.json").is_file():
        raise FileNotFoundError(
            f"{source} holds no config.json: the folder of a model in Hugging Face's format has one."
        )
    theirs = storage.read_json(source / "config.json")
    family, model = _settings(theirs, source, block_size)
    tokenizer = _own(Tokenizer.load(source))
    rows = int(theirs["vocab_size"])
    if tokenizer.vocab_size > rows:
        raise ValueError(f"{source}: its tokenizer has {tokenizer.vocab_size:,} tokens, and its model only {rows:,}.")
    if tokenizer.vocab_size < rows:
        notice(f"{rows - tokenizer.vocab_size:,} rows of the vocabulary, which no token uses, are left out.")
    name = name or as_name(source.resolve().name, "imported")
    if not is_name(name):
        raise ValueError(f"--name {name!r} cannot name a folder: use letters, digits, '.', '_' and '-'.")
    tensors = _cut(turned(_read(source, family), family), family, model["block_size"], tokenizer.vocab_size)
    return _new_run(
        runs_folder(out).resolve() / name, model, family, tokenizer, tensors,
        {"name": source.resolve().name, "architecture": ARCHITECTURES[family]},
    )  # fmt: skip


def _settings(theirs: Any, source: Path, block_size: int | None) -> tuple[Family, dict[str, Any]]:
    """The family, and our settings for the model."""
    if not isinstance(theirs, dict):
        raise ValueError(f"{source / 'config.json'} does not describe a model.")
    found = theirs.get("architectures") or [theirs.get("model_type")]
    names = {name: ours for ours, name in ARCHITECTURES.items()} | MODEL_TYPES
    family = next((names[name] for name in found if name in names), None)
    if family is None:
        raise ValueError(
            f"{source} holds a model of the kind {', '.join(map(str, found))}; those that can be imported are "
            f"{' and '.join(ARCHITECTURES.values())}."
        )
    rope = theirs.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        theirs = theirs | {"rope_scaling": rope["rope_type"]}
    for name, allowed in _FIXED[family].items():
        if (value := theirs.get(name, allowed[0])) not in allowed:
            raise ValueError(
                f"{source}: groundling cannot compute {name} {json.dumps(value)}; it knows {json.dumps(allowed[0])}."
            )
    if any(kind != "full_attention" for kind in theirs.get("layer_types") or []):
        raise ValueError(f"{source}: some of its layers do not attend to the whole context, which ours always do.")
    try:
        model = (_gpt2 if family == "gpt2" else _modern)(theirs, rope)
    except KeyError as error:
        raise ValueError(f"{source / 'config.json'} does not say {error}.") from None
    own = model["block_size"]
    model["block_size"] = block_size or min(own, _LONGEST)
    if model["block_size"] > own:
        raise ValueError(f"--block-size {block_size}: this model's context has {own:,} tokens at most.")
    return family, model


def _gpt2(theirs: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    return {
        "block_size": theirs["n_positions"], "n_layer": theirs["n_layer"], "n_head": theirs["n_head"],
        "n_embd": theirs["n_embd"], "mlp_size": theirs.get("n_inner") or 0,
        "dropout": theirs.get("resid_pdrop", 0.1), "tie_head": theirs.get("tie_word_embeddings", True),
    }  # fmt: skip


def _modern(theirs: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    return {
        "block_size": theirs["max_position_embeddings"], "n_layer": theirs["num_hidden_layers"],
        "n_head": theirs["num_attention_heads"], "n_kv_head": theirs["num_key_value_heads"],
        "n_embd": theirs["hidden_size"], "head_size": theirs.get("head_dim") or 128,
        "mlp_size": theirs["intermediate_size"], "norm": "rmsnorm", "position": "rope", "mlp": "swiglu",
        "rope_theta": float(rope.get("rope_theta") or theirs.get("rope_theta") or 10_000.0), "dropout": 0.0,
        "tie_head": theirs.get("tie_word_embeddings", False),
    }  # fmt: skip


def _own(tokenizer: Tokenizer) -> Tokenizer:
    """Characters, bytes or BPE of our making, where another's file says exactly the same; llama.cpp knows those."""
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
    """All tensors, from model.safetensors or from the files that its index names."""
    index = source / "model.safetensors.index.json"
    files = [source / "model.safetensors"]
    if index.is_file():
        listed = storage.read_json(index)
        names = set(listed["weight_map"].values()) if isinstance(listed.get("weight_map"), dict) else set()
        files = [source / Path(name).name for name in sorted(names)]
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"There is no {file}: weights are read from safetensors, and from nothing else.")
        try:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}.") from None
    spoiled = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if spoiled is not None:
        raise ValueError(f"{source}: its weights {spoiled} hold NaN or infinity. Download the model again.")
    if family == "gpt2":
        # OpenAI's own files leave the first word out, and have masks that are no weights.
        tensors = {
            name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
            for name, tensor in tensors.items()
            if not name.endswith((".attn.bias", ".attn.masked_bias"))
        }
    return tensors


def _cut(tensors: dict[str, torch.Tensor], family: Family, block_size: int, vocab_size: int) -> dict[str, torch.Tensor]:
    """Without positions beyond the context, and without rows that no token uses."""
    names = NAMES[family].outside
    rows = {f"{names['wte']}.weight": vocab_size, f"{names['lm_head']}.weight": vocab_size}
    if family == "gpt2":
        rows[f"{names['wpe']}.weight"] = block_size
    return {name: tensor[: rows[name]] if name in rows else tensor for name, tensor in tensors.items()}


def _new_run(
    folder: Path, model: dict[str, Any], family: Family, tokenizer: Tokenizer, tensors: dict[str, torch.Tensor],
    imported: dict[str, str],
) -> Run:  # fmt: skip
    """A run whose only checkpoint is that of step 0."""
    if model["tie_head"]:
        tensors = {
            name: tensor for name, tensor in tensors.items() if name != f"{NAMES[family].outside['lm_head']}.weight"
        }
    # A tenth of this learning rate is what training further begins with: nanoGPT finetunes GPT-2 with 3e-5.
    training: dict[str, Any] = {"optimizer": "adamw", "learning_rate": PRESETS["gpt2"].training.learning_rate}
    config = Config.build("", "gpt2", **model, **training, tokenizer=str(folder / "tokenizer.json"))
    check_memory(config.model, tokenizer.vocab_size)
    filled = GPT(config.model, tokenizer.vocab_size)
    with torch.no_grad():
        from_external(filled, NAMES[family], tensors)
    run = Run(folder)
    if folder.exists() and run.checkpoints.steps():
        raise FileExistsError(f"The run {run.reference} exists already; choose another --name.")
    with ExitStack() as stack:
        storage.make_folder(folder)  # one that is there without a checkpoint is what an interrupted import left
        lock(folder, stack)
        if run.exists and not run.record.imported:
            raise FileExistsError(f"The run {run.reference} exists already; choose another --name.")
        tokenizer.save(folder / "tokenizer.json")
        record = RunRecord(
            format=FORMAT,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            requested=config,
            settings=config,
            corpus=CorpusFacts(
                name=imported["name"], fingerprint="", documents=2, characters=0, vocab_size=tokenizer.vocab_size,
                tokenizer=tokenizer.fingerprint,
            ),
            machine=MachineFacts(**choose(config.machine).describe()),
            versions=versions() | {"groundling": __version__},
            imported=imported,
        )  # fmt: skip
        run.create(record)
        run.checkpoints.save(Snapshot(TrainState(), filled.state_dict(), {}), 0)
    return run
