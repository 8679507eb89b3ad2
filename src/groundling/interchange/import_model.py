"""Import a model in Hugging Face format as a run that you can sample, evaluate and train further."""

from __future__ import annotations

import copy
import dataclasses
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
from groundling.config import PRESETS, Config, limits
from groundling.data.progress import Notice, silent
from groundling.data.tokenizers.base import END_OF_TEXT, ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.data.tokenizers.chat import MARKUP, ChatTokenizer, with_chat
from groundling.data.tokenizers.chat_template import read_template
from groundling.data.tokenizers.huggingface import USUAL_ENDS, HuggingFaceTokenizer
from groundling.escape import command
from groundling.interchange import peft
from groundling.interchange.find_model import explain, find_model
from groundling.interchange.huggingface import ARCHITECTURES, NAMES, transposed
from groundling.interchange.read_config import read_settings
from groundling.interchange.weight_names import Family, family_of, from_external, to_external
from groundling.machine import choose, versions
from groundling.model.gpt import GPT
from groundling.model.weights_file import check_memory
from groundling.run.folder import as_name, checked_name, runs_folder
from groundling.run.lock import lock
from groundling.run.record import FORMAT, CorpusFacts, MachineFacts, RunRecord
from groundling.run.run import Run
from groundling.run.store import load
from groundling.training.checkpoints import Snapshot
from groundling.training.state import TrainState

_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")  # computed, not learned


def import_model(
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    block_size: int | None = None,
    base: str | os.PathLike[str] | Run | None = None,
    out: str | os.PathLike[str] | None = None,
    notice: Notice = silent,
) -> Run:
    """Import a GPT-2, Llama, Mistral, Qwen2 or Qwen3 from a local folder with config.json, safetensors (one file or
    several) and a tokenizer. Returns a run.

    Args:
        folder: the model's folder, or the id of a model in Hugging Face's cache, such as "Qwen/Qwen3-0.6B".
        name: the run's name. Default: the folder's name.
        block_size: the context length. Default: the model's own, at most 2,048.
        base: for the folder of an adapter (PEFT), the run of the model that it belongs to. The new run has the weights
            of both, merged.
        out: folder for runs. Default: `$GROUNDLING_RUNS`, or `./runs`.

    Raises ValueError or OSError, with the reason, if the model cannot be imported.
    """
    if block_size is not None:
        limits.BLOCK_SIZE.check("--block-size", block_size)
    runs = runs_folder(out).resolve()
    if base is not None:
        if block_size is not None:
            raise ValueError("--block-size does not work with --base: the context is that of the base.")
        return _import_adapter(folder, base if isinstance(base, Run) else load(base, out=out), runs, name)
    try:
        source, title = find_model(folder)
    except FileNotFoundError:
        if (runs / folder / "config.json").is_file():
            raise _own(Run(runs / folder).reference) from None
        raise
    theirs = storage.read_json(source / "config.json")
    if isinstance(theirs, dict) and {"requested", "settings"} <= theirs.keys():
        raise _own(source)
    try:
        family, model, rows = read_settings(theirs, source, block_size, notice)
    except KeyError as error:
        raise ValueError(f"{source / 'config.json'} has no entry {error}.") from None
    except (TypeError, AttributeError, ArithmeticError) as error:  # an entry of another type
        raise ValueError(f"{source / 'config.json'} does not describe a model: {error}.") from None
    tokenizer = _with_template(_tokenizer(source, theirs, rows, notice), source, notice)
    if tokenizer.vocab_size < rows:
        notice(f"Dropped {rows - tokenizer.vocab_size:,} vocabulary rows that no token uses.")
    name = checked_name(name) if name is not None else as_name(title, "imported")
    storage.check_writable(runs, "--out or GROUNDLING_RUNS", notice)
    tensors = transposed(_read(source, family), family)
    head, embedding = tensors.get("lm_head.weight"), tensors.get(f"{NAMES[family]['wte']}.weight")
    if model["tie_head"] and head is not None and embedding is not None and not torch.equal(head, embedding):
        notice("The output head has its own weights, although tie_word_embeddings is true: not tied.")
        model["tie_head"] = False
    tensors = _trim(tensors, family, model, tokenizer.vocab_size)
    return _new_run(
        runs / name, model, family, tokenizer, tensors,
        {"name": title, "architecture": ARCHITECTURES[family]},
    )  # fmt: skip


def _import_adapter(folder: str | os.PathLike[str], base: Run, runs: Path, name: str | None) -> Run:
    source, title = find_model(folder, peft.CONFIG)
    architecture = (base.record.imported or {}).get("architecture")
    family = family_of(base.config.model, architecture)
    model = copy.deepcopy(base.model).cpu()
    peft.read(source, model, family)
    about = {"name": f"{title}, an adapter of {base.name}", "architecture": ARCHITECTURES[family]}
    name = checked_name(name) if name is not None else as_name(title, "imported")
    tensors = to_external(model, NAMES[family])
    return _new_run(runs / name, dataclasses.asdict(base.config.model), family, base.tokenizer, tensors, about)


def _tokenizer(source: Path, theirs: dict[str, Any], rows: int, notice: Notice) -> Tokenizer:
    """The model's tokenizer, without added tokens that have no row among the model's `rows`, and with the ends of texts
    that generation_config.json, config.json and the tokenizer's files name."""
    tokenizer = _own_tokenizer(Tokenizer.load(source))
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        if tokenizer.vocab_size > rows:
            raise _too_many_tokens(source, tokenizer, rows)
        return tokenizer
    definition = tokenizer.definition
    if tokenizer.vocab_size > rows:
        kept = [token for token in definition["added_tokens"] if token["id"] < rows]
        dropped = [token["content"] for token in definition["added_tokens"] if token["id"] >= rows]
        definition = definition | {"added_tokens": kept}
        if (smaller := HuggingFaceTokenizer(definition)).vocab_size > rows:
            raise _too_many_tokens(source, smaller, rows)
        notice(f"Dropped {len(dropped):,} added tokens without a row in the embedding: {', '.join(dropped):.100}.")
    generation = source / "generation_config.json"
    chosen = storage.read_json(generation) if generation.is_file() else {}
    ends = chosen.get("eos_token_id") if isinstance(chosen, dict) else None
    ends = theirs.get("eos_token_id") if ends is None else ends
    names = {token["id"]: token["content"] for token in definition["added_tokens"] if token["special"]}
    found = [names[id] for id in (ends if isinstance(ends, list) else [ends]) if type(id) is int and id in names]
    found.sort(key=lambda name: name not in USUAL_ENDS)  # documents end with the first, and chats with others
    return HuggingFaceTokenizer(definition, list(dict.fromkeys([*found, *tokenizer.ends])))


def _with_template(tokenizer: Tokenizer, source: Path, notice: Notice) -> Tokenizer:
    """The tokenizer for chats, if the model has a chat template, and tokens for its markup."""
    template = None if isinstance(tokenizer, ChatTokenizer) else read_template(source)
    chat = with_chat(tokenizer, *template, notice) if template else tokenizer
    return tokenizer if chat.vocab_size > tokenizer.vocab_size else chat


def _own(run: str | os.PathLike[str]) -> ValueError:
    return ValueError(f"{run} is a groundling run already. Use it without an import: `{command('sample', run)}`.")


def _too_many_tokens(source: Path, tokenizer: Tokenizer, rows: int) -> ValueError:
    return ValueError(f"{source}: the tokenizer has {tokenizer.vocab_size:,} tokens, but the model only {rows:,}.")


def _own_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Our own character, byte or BPE tokenizer if `tokenizer` is exactly that, perhaps with our markup for chats. All
    of ours can be exported to GGUF."""
    definition = tokenizer.to_huggingface()
    vocabulary, merges = (definition["model"].get(key) for key in ("vocab", "merges"))
    chat = tuple(token["content"] for token in definition["added_tokens"][-len(MARKUP) :]) == MARKUP
    if chat and isinstance(vocabulary, dict):
        vocabulary = {token: i for token, i in vocabulary.items() if token not in MARKUP}
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
            if (own := make() if not chat else ChatTokenizer(make())).to_huggingface() == definition:
                return own
    return tokenizer


def _read(source: Path, family: Family) -> dict[str, torch.Tensor]:
    """All tensors from model.safetensors, or from the files that its index lists."""
    index, files = source / "model.safetensors.index.json", [source / "model.safetensors"]
    if index.is_file():
        try:
            files = sorted({source / Path(name).name for name in storage.read_json(index)["weight_map"].values()})
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is damaged: it does not list the files of the weights.") from None
    elif not files[0].is_file():
        others = sorted(source.glob("*.safetensors"))
        files = sorted(source.glob("model-*-of-*.safetensors")) or (others if len(others) == 1 else files)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        if not file.is_file():
            why = f"{index.name} lists it: download the model again." if index.is_file() else explain(source)
            raise FileNotFoundError(f"{file} does not exist. {why}")
        with file.open("rb") as opened:
            if opened.read(100).startswith(b"version https://git-lfs"):
                raise ValueError(
                    f"{file} is a placeholder of Git LFS, not the weights. Run `git lfs pull` in its folder."
                )
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}.") from None
    return _with_usual_names(tensors, source, "transformer." if family == "gpt2" else "model.")


def _with_usual_names(tensors: dict[str, torch.Tensor], source: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The learned weights, under the names that transformers gives them. Files of a model without its head omit the
    `prefix`, as OpenAI's own do, and wrappers of PyTorch add theirs."""
    usual: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_BUFFERS):
            continue
        if tensor.dtype not in _PLAIN:
            raise ValueError(
                f"{source}: the weights {name:.100} are {str(tensor.dtype).removeprefix('torch.')}. groundling imports "
                "float32, bfloat16 or float16. Import the model that they were quantized from."
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{source}: the weights {name:.100} contain NaN or infinity. Download the model again.")
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
        usual[name if name.startswith((prefix, "lm_head.")) else prefix + name] = tensor
    return usual


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
